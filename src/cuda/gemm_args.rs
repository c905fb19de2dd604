//! The arguments of GEMM kernels by name: the host's side of the macros in `kernels/common/gemm_problem.cuh`.

use finegrain_cpu::gemm::Promotion;

use super::driver::Arg;
use crate::formats::Format;

/// One operand.
pub(super) struct OperandArgs {
    pub(super) codes: u64,
    pub(super) scales: u64,
    /// Bytes from row to row.
    pub(super) ld: i64,
    /// Scales from those of some rows to those of the next, and from an interval of K to the next.
    pub(super) scale_row: i64,
    pub(super) scale_interval: i64,
    /// Rows that share a scale.
    pub(super) granule: u32,
    /// Bytes, and scales, from a group to the next.
    pub(super) group: i64,
    pub(super) scale_group: i64,
}

/// A product.
pub(super) struct GemmArgs {
    pub(super) a: OperandArgs,
    pub(super) b: OperandArgs,
    /// 0 for none.
    pub(super) addend: u64,
    pub(super) d: u64,
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    pub(super) ld_addend: i64,
    pub(super) ldd: i64,
    pub(super) tensor_scale: f32,
    pub(super) promotion: Promotion,
    pub(super) bf16: bool,
    /// What says which rows, or which part of K, belong to which group; for grouped kernels.
    pub(super) groups: Option<u64>,
    /// For the plain kernels.
    pub(super) plain: Option<PlainArgs>,
}

/// What the plain kernels take besides.
pub(super) struct PlainArgs {
    /// Elements of K that share a scale.
    pub(super) granule_k: u32,
    /// Elements of K between promotions; 0 for none.
    pub(super) interval: u32,
    pub(super) formats: [Format; 2],
}

impl GemmArgs {
    /// In the order of the kernels.
    pub(super) fn list(&self) -> Vec<Arg> {
        self.named().into_iter().map(|(_, arg)| arg).collect()
    }

    /// With the names that the kernels have for them.
    fn named(&self) -> Vec<(&'static str, Arg)> {
        let GemmArgs { a, b, .. } = self;
        let promotion = match self.promotion {
            Promotion::ScalesFirst => 0,
            Promotion::PartialFirst => 1,
            Promotion::Unfused => 2,
        };
        let mut args = vec![
            ("a", Arg::Address(a.codes)),
            ("b", Arg::Address(b.codes)),
            ("scale_a", Arg::Address(a.scales)),
            ("scale_b", Arg::Address(b.scales)),
            ("addend", Arg::Address(self.addend)),
            ("d", Arg::Address(self.d)),
            ("m", Arg::U32(self.m)),
            ("n", Arg::U32(self.n)),
            ("k", Arg::U32(self.k)),
            ("lda", Arg::I64(a.ld)),
            ("ldb", Arg::I64(b.ld)),
            ("ld_addend", Arg::I64(self.ld_addend)),
            ("ldd", Arg::I64(self.ldd)),
            ("scale_a_row", Arg::I64(a.scale_row)),
            ("scale_a_interval", Arg::I64(a.scale_interval)),
            ("scale_b_row", Arg::I64(b.scale_row)),
            ("scale_b_interval", Arg::I64(b.scale_interval)),
            ("granule_m", Arg::U32(a.granule)),
            ("granule_n", Arg::U32(b.granule)),
            ("tensor_scale", Arg::F32(self.tensor_scale)),
            ("promotion", Arg::I32(promotion)),
            ("d_format", Arg::I32(i32::from(self.bf16))),
        ];
        if let Some(groups) = self.groups {
            args.extend([
                ("groups", Arg::Address(groups)),
                ("a_group", Arg::I64(a.group)),
                ("b_group", Arg::I64(b.group)),
                ("scale_a_group", Arg::I64(a.scale_group)),
                ("scale_b_group", Arg::I64(b.scale_group)),
            ]);
        }
        if let Some(PlainArgs { granule_k, interval, formats }) = &self.plain {
            let [format_a, format_b] = formats.map(|format| Arg::I32(i32::from(format == Format::E5M2)));
            args.extend([
                ("granule_k", Arg::U32(*granule_k)),
                ("interval", Arg::U32(*interval)),
                ("format_a", format_a),
                ("format_b", format_b),
            ]);
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, type) of each parameter of a macro.
    fn declared(text: &str, name: &str) -> Vec<(String, &'static str)> {
        let (_, rest) = text.split_once(&format!("#define {name}")).unwrap();
        let mut body = String::new();
        for line in rest.lines() {
            body += line.trim_end_matches('\\');
            if !line.ends_with('\\') {
                break;
            }
        }
        let kinds = [("*", "address"), ("u32", "u32"), ("i32", "i32"), ("i64", "i64"), ("float", "float")];
        let one = |parameter: &str| {
            let name = parameter.rsplit([' ', '*']).next().unwrap().to_owned();
            let kind = kinds.iter().find(|(word, _)| parameter.contains(word)).unwrap().1;
            (name, kind)
        };
        body.split(',').map(|p| one(p.trim())).collect()
    }

    fn kind(arg: &Arg) -> &'static str {
        match arg {
            Arg::Address(_) => "address",
            Arg::U32(_) => "u32",
            Arg::I32(_) => "i32",
            Arg::I64(_) => "i64",
            Arg::F32(_) => "float",
            Arg::Scales(_) | Arg::Recipe(_) => "struct",
        }
    }

    #[test]
    fn names_types_and_order_are_those_of_the_kernels() {
        let operand = || OperandArgs {
            codes: 1,
            scales: 2,
            ld: 3,
            scale_row: 4,
            scale_interval: 5,
            granule: 6,
            group: 7,
            scale_group: 8,
        };
        let args = GemmArgs {
            a: operand(),
            b: operand(),
            addend: 0,
            d: 9,
            m: 10,
            n: 11,
            k: 12,
            ld_addend: 13,
            ldd: 14,
            tensor_scale: 1.0,
            promotion: Promotion::Unfused,
            bf16: true,
            groups: Some(15),
            plain: Some(PlainArgs { granule_k: 128, interval: 128, formats: [Format::E4M3, Format::E5M2] }),
        };
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let (common, plain) = (read("common/gemm_problem.cuh"), read("gemm_f32_reference.cu"));
        let expected = [
            declared(&common, "GEMM_PARAMETERS"),
            declared(&common, "GEMM_GROUP_PARAMETERS"),
            declared(&plain, "REFERENCE_PARAMETERS"),
        ];
        let named = args.named();
        let named: Vec<_> = named.iter().map(|(name, arg)| ((*name).to_owned(), kind(arg))).collect();
        assert_eq!(named, expected.concat());
    }
}
