//! Which tensors of a checkpoint are codes and which are their scales, whatever they are called.
//!
//! **A tensor is a scale only where the codes that it names are there too**: `logit_scale`, or a norm's `scale`, is a
//! weight. The name of a scale is a stem and a mark, joined by `_` or `.` ([`Part`] lists the marks; `weight` may stand
//! on either side of one, as in `w13_weight_scale` and `l.scale_weight`). The stem names the codes: a tensor T, a tensor
//! `T_packed` or `T_blocks`, or the `weight` (`qweight`) of a layer T. The longest stem wins.
//!
//! Codes are tensors of an F8, F6 or F4 dtype, and integers (U8, I8, U16, I16, U32, I32) that have block scales. An F8
//! tensor that is a scale of others is a scale, not codes. Beside F8 or F4 codes without scales, a tensor that is called a
//! scale in any other way belongs to them too, and nothing here reads it.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;

/// What a tensor is to the codes that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The factors of the granules: `scale_inv`, `scales_inv`, `scale`, `scales`.
    Block,
    /// A factor of the second level, one for each matrix: `scale_tensor`, `scale_2`.
    Tensor,
    /// The same as a divisor: `global_scale`.
    Divisor,
    /// Of the layer's inputs or outputs, not of these codes' values: `input_scale`, `act_scale`, `k_scale`, …
    Activation,
    /// Belongs to the codes in a way that nothing here reads: zero points, code books, orders of groups, scales of
    /// scales.
    Foreign,
}

/// The marks, without `_` or `.` before them.
const MARKS: &[(&str, Part)] = &[
    ("scale_inv", Part::Block),
    ("scales_inv", Part::Block),
    ("inv_scale", Part::Block),
    ("scale", Part::Block),
    ("scales", Part::Block),
    ("scale_tensor", Part::Tensor),
    ("tensor_scale", Part::Tensor),
    ("scale_2", Part::Tensor),
    ("scale2", Part::Tensor),
    ("global_scale", Part::Divisor),
    ("scale_global", Part::Divisor),
    ("input_scale", Part::Activation),
    ("input_scale_inv", Part::Activation),
    ("input_global_scale", Part::Activation),
    ("scale_input", Part::Activation),
    ("output_scale", Part::Activation),
    ("act_scale", Part::Activation),
    ("activation_scale", Part::Activation),
    ("q_scale", Part::Activation),
    ("k_scale", Part::Activation),
    ("v_scale", Part::Activation),
    ("zero_point", Part::Foreign),
    ("zeros", Part::Foreign),
    ("qzeros", Part::Foreign),
    ("biases", Part::Foreign),
    ("g_idx", Part::Foreign),
    ("absmax", Part::Block),
    ("nested_absmax", Part::Foreign),
    ("quant_map", Part::Foreign),
    ("nested_quant_map", Part::Foreign),
    ("SCB", Part::Block),
];

/// Ends of the names of packed codes, which their stem lacks.
const PACKED: &[&str] = &["_packed", ".packed", "_blocks", ".blocks"];

/// A tensor that belongs to codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// Its name.
    pub name: String,
    /// What it is to them.
    pub part: Part,
}

/// The codes of a checkpoint and what belongs to each.
///
/// ```
/// use finegrain::checkpoint::{Dtype, Pairs, Part};
/// let pairs = Pairs::of([
///     ("l.weight", Some(Dtype::F8_E4M3)),
///     ("l.weight_scale", Some(Dtype::F32)),
///     ("logit_scale", Some(Dtype::F32)),
/// ]);
/// assert_eq!(pairs.owner("l.weight_scale"), Some(("l.weight", Part::Block)));
/// assert_eq!(pairs.owner("logit_scale"), None);
/// assert!(pairs.is_codes("l.weight"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    owners: HashMap<String, (String, Part)>,
    codes: HashMap<String, Vec<Partner>>,
}

impl Pairs {
    /// Pairs the tensors of a checkpoint. The dtype of a tensor that is known by name only (in a shard that is not there)
    /// is `None`; such a tensor counts as codes where another's name says that it is the scale of a weight.
    pub fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, Option<Dtype>)>) -> Pairs {
        let tensors: Vec<(&str, Option<Dtype>)> = tensors.into_iter().collect();
        let kinds: HashMap<&str, Kind> =
            tensors.iter().filter_map(|&(name, dtype)| Some((name, Kind::of(dtype)?))).collect();
        // Keys of codes: the rank says how much of the name was taken away.
        let mut keys: HashMap<&str, Vec<(usize, &str)>> = HashMap::new();
        for &name in kinds.keys() {
            for (rank, key) in stems_of_codes(name).into_iter().enumerate() {
                keys.entry(key).or_default().push((rank, name));
            }
        }
        keys.values_mut().for_each(|all| all.sort_unstable());

        let mut owners: HashMap<String, (String, Part)> = HashMap::new();
        for &(name, _) in &tensors {
            let found = readings(name).into_iter().find_map(|reading| {
                let all = keys.get(reading.stem)?;
                let fits = |codes: &&str| {
                    *codes != name && (kinds[codes] != Kind::Unknown || reading.says_weight(name))
                };
                all.iter().map(|(_, codes)| *codes).find(fits).map(|codes| (codes.to_owned(), reading.part))
            });
            if let Some(found) = found {
                owners.insert(name.to_owned(), found);
            }
        }
        // Integers, and what is known by name only, are codes by their block scales.
        let scaled: HashSet<String> = owners
            .values()
            .filter(|(_, part)| *part == Part::Block)
            .map(|(codes, _)| codes.clone())
            .collect();
        owners.retain(|_, (codes, _)| kinds[codes.as_str()] == Kind::Float || scaled.contains(codes));
        root(&mut owners);
        strays(&tensors, &keys, &kinds, &scaled, &mut owners);

        let mut codes: HashMap<String, Vec<Partner>> = HashMap::new();
        for (&name, &kind) in &kinds {
            if !owners.contains_key(name) && (kind == Kind::Float || scaled.contains(name)) {
                codes.insert(name.to_owned(), Vec::new());
            }
        }
        for &(name, _) in &tensors {
            if let Some((of, part)) = owners.get(name)
                && let Some(partners) = codes.get_mut(of)
            {
                partners.push(Partner { name: name.to_owned(), part: *part });
            }
        }
        Pairs { owners, codes }
    }

    /// The codes that a tensor belongs to, and how; `None` for what is no scale.
    pub fn owner(&self, name: &str) -> Option<(&str, Part)> {
        self.owners.get(name).map(|(codes, part)| (codes.as_str(), *part))
    }

    /// Whether a tensor is codes.
    pub fn is_codes(&self, name: &str) -> bool {
        self.codes.contains_key(name)
    }

    /// What belongs to a tensor of codes, in the order of the checkpoint.
    pub fn partners(&self, codes: &str) -> &[Partner] {
        self.codes.get(codes).map_or(&[], Vec::as_slice)
    }

    /// The name of the values of codes: without the end that says how they are packed.
    pub fn name_of_values(codes: &str) -> &str {
        PACKED.iter().find_map(|end| codes.strip_suffix(end)).unwrap_or(codes)
    }
}

/// How sure a dtype makes it that a tensor is codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A dtype of few bits, which says it.
    Float,
    /// Integers: their scales say it.
    Integer,
    /// No dtype is known.
    Unknown,
}

impl Kind {
    fn of(dtype: Option<Dtype>) -> Option<Kind> {
        match dtype {
            None => Some(Kind::Unknown),
            Some(
                Dtype::F8_E4M3
                | Dtype::F8_E5M2
                | Dtype::F8_E4M3FNUZ
                | Dtype::F8_E5M2FNUZ
                | Dtype::F6_E2M3
                | Dtype::F6_E3M2
                | Dtype::F4,
            ) => Some(Kind::Float),
            Some(Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32) => {
                Some(Kind::Integer)
            }
            Some(_) => None,
        }
    }
}

/// One way to read a name as that of a scale.
struct Reading<'a> {
    stem: &'a str,
    part: Part,
}

impl Reading<'_> {
    /// Whether the mark can be that of quantised weights only.
    fn says_weight(&self, name: &str) -> bool {
        let mark = &name[self.stem.len()..];
        ["scale_inv", "scales_inv", "weight"].iter().any(|word| mark.contains(word))
            || weightless(self.stem) != self.stem
    }
}

/// Every way to read a name as a stem and a mark, the longest stem first.
fn readings(name: &str) -> Vec<Reading<'_>> {
    let mut all = Vec::new();
    let ends = [Some(name), name.strip_suffix("_weight")];
    for whole in ends.into_iter().flatten() {
        for &(mark, part) in MARKS {
            let Some(stem) = whole.strip_suffix(mark) else { continue };
            let stem = match stem.strip_suffix(['_', '.']) {
                Some(stem) => stem,
                None if stem.is_empty() => stem,
                None => continue,
            };
            all.push(Reading { stem, part });
            let short = weightless(stem);
            if short != stem {
                all.push(Reading { stem: short, part });
            }
        }
    }
    all.sort_by_key(|reading| std::cmp::Reverse(reading.stem.len()));
    all
}

/// A name without `weight` at its end.
fn weightless(name: &str) -> &str {
    if name == "weight" {
        return "";
    }
    ["_weight", ".weight"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// What a scale may call codes of this name, the fullest first.
fn stems_of_codes(name: &str) -> Vec<&str> {
    let values = Pairs::name_of_values(name);
    let layer = [".qweight", "_qweight"].iter().find_map(|end| values.strip_suffix(end));
    let layer = layer.unwrap_or_else(|| if values == "qweight" { "" } else { weightless(values) });
    let mut stems = vec![name, values, layer];
    stems.dedup();
    stems
}

/// Whatever is called a scale in another way, beside F8 codes that have none, belongs to those: as what, nothing says.
fn strays(
    tensors: &[(&str, Option<Dtype>)],
    keys: &HashMap<&str, Vec<(usize, &str)>>,
    kinds: &HashMap<&str, Kind>,
    scaled: &HashSet<String>,
    owners: &mut HashMap<String, (String, Part)>,
) {
    for &(name, _) in tensors {
        if owners.contains_key(name) || kinds.get(name) == Some(&Kind::Float) || !is_called_scale(name) {
            continue;
        }
        let bare = |codes: &&str| {
            kinds[codes] == Kind::Float && !scaled.contains(*codes) && !owners.contains_key(*codes)
        };
        let codes = stems_within_layer(name).find_map(|stem| {
            keys.get(stem)?.iter().map(|(_, codes)| *codes).find(|codes| *codes != name && bare(codes))
        });
        if let Some(codes) = codes {
            owners.insert(name.to_owned(), (codes.to_owned(), Part::Foreign));
        }
    }
}

/// Whether a name speaks of scales.
pub(super) fn is_called_scale(name: &str) -> bool {
    ["scale", "scaling"].iter().any(|word| name.to_ascii_lowercase().contains(word))
}

/// What stands before each `_` of the last part of a name and before its `.`, the longest first: names of codes that are
/// beside it.
pub(super) fn stems_within_layer(name: &str) -> impl Iterator<Item = &str> {
    let least = name.rfind('.').unwrap_or(0);
    let cuts = name.match_indices(['_', '.']).map(|(at, _)| at).filter(move |&at| at > 0 && at >= least);
    cuts.collect::<Vec<_>>().into_iter().rev().map(|at| &name[..at])
}

/// Scales of scales belong to the codes at the root, as something that nothing here reads.
fn root(owners: &mut HashMap<String, (String, Part)>) {
    let chained: Vec<String> =
        owners.iter().filter(|(_, (of, _))| owners.contains_key(of)).map(|(name, _)| name.clone()).collect();
    for name in chained {
        let mut of = owners[&name].0.clone();
        let mut seen = HashSet::from([name.clone()]);
        while let Some((next, _)) = owners.get(&of).filter(|_| seen.insert(of.clone())) {
            of = next.clone();
        }
        // Two tensors that name each other are no chain: the one is not under the other.
        if !owners.contains_key(&of) {
            owners.insert(name, (of, Part::Foreign));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tensors: &[(&str, Dtype)], name: &str) -> Option<(String, Part)> {
        let pairs = Pairs::of(tensors.iter().map(|&(name, dtype)| (name, Some(dtype))));
        pairs.owner(name).map(|(codes, part)| (codes.to_owned(), part))
    }

    #[test]
    fn scales_are_known_by_any_name_of_the_field() {
        for (codes, dtype, scale, part) in [
            ("w", Dtype::F8_E4M3, "w_scale_inv", Part::Block),
            ("w", Dtype::F8_E4M3, "w_scale", Part::Block),
            ("w", Dtype::F8_E4M3, "w.scale", Part::Block),
            ("w", Dtype::F8_E4M3, "w_weight_scale", Part::Block),
            ("w", Dtype::F8_E4M3, "w_scale_weight", Part::Block),
            ("w", Dtype::F8_E4M3, "w_scale_tensor", Part::Tensor),
            ("l.weight", Dtype::F8_E5M2, "l.weight_scale_inv", Part::Block),
            ("l.weight", Dtype::F8_E5M2, "l.weight_scale", Part::Block),
            ("l.weight", Dtype::F8_E5M2, "l.weight_scale_2", Part::Tensor),
            ("l.weight", Dtype::F8_E4M3FNUZ, "l.scale", Part::Block),
            ("l.weight", Dtype::F8_E4M3, "l.weight.scale", Part::Block),
            ("l.weight", Dtype::F8_E4M3, "l.scale_weight", Part::Block),
            ("l.weight", Dtype::F8_E4M3, "l.input_scale", Part::Activation),
            ("l.weight", Dtype::F8_E4M3, "l.scale_input", Part::Activation),
            ("k_proj.weight", Dtype::F8_E4M3, "k_proj.k_scale", Part::Activation),
            ("w13_weight", Dtype::F8_E4M3, "w13_weight_scale", Part::Block),
            ("l.weight", Dtype::F4, "l.weight_scale", Part::Block),
            ("weight", Dtype::F8_E4M3, "scale", Part::Block),
            ("weight", Dtype::F8_E4M3, "weight_scale", Part::Block),
        ] {
            let tensors = [(codes, dtype), (scale, Dtype::F32)];
            assert_eq!(owner(&tensors, scale), Some((codes.to_owned(), part)), "{codes} {scale}");
            assert_eq!(owner(&tensors, codes), None);
            let float = [(codes, Dtype::BF16), (scale, Dtype::F32)];
            assert_eq!(owner(&float, scale), None, "{codes} in BF16 has no scales");
        }
    }

    #[test]
    fn integers_are_codes_by_their_scales() {
        let packed = [
            ("l.weight_packed", Dtype::U8),
            ("l.weight_scale", Dtype::F8_E4M3),
            ("l.weight_global_scale", Dtype::F32),
            ("l.input_global_scale", Dtype::F32),
            ("ids", Dtype::I32),
            ("mask", Dtype::U8),
            ("mask_scale_tensor", Dtype::F32),
        ];
        let pairs = Pairs::of(packed.map(|(name, dtype)| (name, Some(dtype))));
        assert!(pairs.is_codes("l.weight_packed") && !pairs.is_codes("l.weight_scale"));
        assert!(
            !pairs.is_codes("ids") && !pairs.is_codes("mask") && pairs.owner("mask_scale_tensor").is_none()
        );
        let parts: Vec<Part> = pairs.partners("l.weight_packed").iter().map(|p| p.part).collect();
        assert_eq!(parts, [Part::Block, Part::Divisor, Part::Activation]);
        let blocks = [("e.up_blocks", Dtype::U8), ("e.up_scales", Dtype::U8)];
        assert_eq!(owner(&blocks, "e.up_scales"), Some(("e.up_blocks".to_owned(), Part::Block)));
        let gptq = [("l.qweight", Dtype::I32), ("l.scales", Dtype::F16), ("l.qzeros", Dtype::I32)];
        assert_eq!(owner(&gptq, "l.scales"), Some(("l.qweight".to_owned(), Part::Block)));
        assert_eq!(owner(&gptq, "l.qzeros"), Some(("l.qweight".to_owned(), Part::Foreign)));
        assert_eq!(Pairs::name_of_values("l.weight_packed"), "l.weight");
    }

    #[test]
    fn what_names_no_codes_is_a_weight() {
        let tensors = [
            ("logit_scale", Dtype::F32),
            ("norm.scale", Dtype::F32),
            ("norm.weight", Dtype::BF16),
            ("scale", Dtype::F32),
            ("l.weight", Dtype::F8_E4M3),
            ("l.weight_scale", Dtype::F32),
            ("rescale", Dtype::F32),
            ("l.logit_scale", Dtype::F32),
        ];
        for (name, _) in tensors.into_iter().filter(|(name, _)| *name != "l.weight_scale") {
            assert_eq!(owner(&tensors, name), None, "{name}");
        }
        // Beside codes without scales nobody knows what it is.
        let bare = [("l.weight", Dtype::F8_E4M3), ("l.WeightScale", Dtype::F32), ("m.a_scale", Dtype::F32)];
        assert_eq!(owner(&bare, "l.WeightScale"), Some(("l.weight".to_owned(), Part::Foreign)));
        assert_eq!(owner(&bare, "m.a_scale"), None);
    }

    #[test]
    fn the_longest_stem_wins_and_scales_of_scales_are_foreign() {
        let tensors = [
            ("l", Dtype::F8_E4M3),
            ("l.weight", Dtype::F8_E4M3),
            ("l.weight_scale", Dtype::F8_E4M3),
            ("l.weight_scale_scale_inv", Dtype::F32),
            ("l.scale", Dtype::F32),
        ];
        assert_eq!(owner(&tensors, "l.weight_scale"), Some(("l.weight".to_owned(), Part::Block)));
        assert_eq!(owner(&tensors, "l.scale"), Some(("l".to_owned(), Part::Block)));
        let scale_of_scale = owner(&tensors, "l.weight_scale_scale_inv");
        assert_eq!(scale_of_scale, Some(("l.weight".to_owned(), Part::Foreign)));
    }

    #[test]
    fn a_shard_that_is_not_there_is_believed_where_names_are_plain() {
        let pairs = Pairs::of([
            ("l.weight_scale_inv", Some(Dtype::F32)),
            ("l.weight", None),
            ("norm.scale", Some(Dtype::F32)),
            ("norm.weight", None),
        ]);
        assert_eq!(pairs.owner("l.weight_scale_inv"), Some(("l.weight", Part::Block)));
        assert_eq!(pairs.owner("norm.scale"), None);
    }
}
