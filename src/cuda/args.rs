//! Recipes and scale grids as kernel arguments: the host's side of two structs in `kernels/common/scale.cuh`.

use crate::error::{Error, Result};
use crate::formats::{Format, Overflow};
use crate::quant::{
    ElementCast, MultiplierForm, NanAmax, PayloadForm, PowerOfTwo, Recipe, ScaleForm, ScaleFormat, Scaling,
};

/// `Recipe` of `scale.cuh`: 13 words, the same order. Made from a [`Recipe`].
///
/// ```
/// use finegrain::cuda::RecipeArgs;
/// use finegrain::quant::Recipe;
/// let args = RecipeArgs::try_from(&Recipe::DEEPSEEK_V3)?;
/// assert_eq!(args.floor, 1e-4);
/// assert!(RecipeArgs::try_from(&"mxfp8".parse()?).is_err());
/// # Ok::<(), finegrain::Error>(())
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecipeArgs {
    /// `ScaleForm`.
    pub form: i32,
    /// `PowerOfTwo`.
    pub power_of_two: i32,
    /// `PayloadForm`.
    pub payload: i32,
    /// `Cast`.
    pub cast: i32,
    /// 1: NaN elements do not count in amax; 0: they make it NaN.
    pub ignores_nan: i32,
    /// Which of the last four exist; set of `Replaces`.
    pub replaces: i32,
    /// amax is raised to this.
    pub floor: f32,
    /// The largest element.
    pub max: f32,
    /// fl(1 / max).
    pub inv_max: f32,
    /// s or m of a zero granule.
    pub zero: f32,
    /// Replaces an infinite m.
    pub overflow: f32,
    /// m for an infinite amax.
    pub infinite: f32,
    /// m for a NaN amax.
    pub nan: f32,
}

/// POW2_FLOOR_MULTIPLIER and PAYLOAD_MULTIPLIER, which [`PowerOfTwo`] and [`PayloadForm`] have no names for.
const FLOOR_MULTIPLIER: i32 = 5;
const PAYLOAD_MULTIPLIER: i32 = 5;

impl TryFrom<&Recipe> for RecipeArgs {
    type Error = Error;

    /// # Errors
    /// [`Error::Unsupported`] for what the kernels do not compute: elements other than E4M3, MX and NVFP4 scaling, and
    /// torchao's f64 reciprocal.
    fn try_from(recipe: &Recipe) -> Result<Self> {
        let refuse =
            |why: &str| Err(Error::Unsupported(format!("recipe {} has no CUDA kernel: {why}", recipe.name)));
        if recipe.element != Format::E4M3 {
            return refuse(&format!("its elements are {}, the kernels write E4M3", recipe.element));
        }
        let cast = match recipe.cast {
            ElementCast::Plain(Overflow::Saturate) => 0,
            ElementCast::Plain(Overflow::NonSaturating) => 1,
            ElementCast::PositiveZero => 2,
            ElementCast::E5m6(_) => return refuse("its cast is that of E5M6"),
        };
        let (form, power_of_two, payload, replacements) = match recipe.scaling {
            Scaling::Scale { form, power_of_two, payload, zero } => {
                let form = match form {
                    ScaleForm::Quotient => 0,
                    ScaleForm::Reciprocal => 1,
                };
                let power_of_two = match power_of_two {
                    PowerOfTwo::No => 0,
                    PowerOfTwo::CeilLog2F32 => 1,
                    PowerOfTwo::CeilField => 2,
                    PowerOfTwo::CeilFieldClamped => 3,
                    PowerOfTwo::CeilMask => 4,
                };
                let payload = match payload {
                    PayloadForm::Quotient => 0,
                    PayloadForm::Inverse => 1,
                    PayloadForm::MaxOverAmax => 2,
                    PayloadForm::MaxTimesReciprocal => 3,
                    PayloadForm::NegatedExponent => 4,
                };
                (form, power_of_two, payload, [zero, None, None, None])
            }
            Scaling::Multiplier { form, overflow, power_of_two, zero, infinite, nan } => {
                let form = match form {
                    MultiplierForm::Quotient => 2,
                    MultiplierForm::Reciprocal => 3,
                    MultiplierForm::Reciprocal64 => return refuse("its multiplier is computed in f64"),
                };
                let power_of_two = if power_of_two { FLOOR_MULTIPLIER } else { 0 };
                (form, power_of_two, PAYLOAD_MULTIPLIER, [zero, overflow, infinite, nan])
            }
            Scaling::Mx(_) => return refuse("its scales are those of OCP MX"),
            Scaling::Nvfp4(_) => return refuse("its scales are those of NVFP4"),
        };
        let present = |i: usize| i32::from(replacements[i].is_some()) << i;
        let value = |i: usize| replacements[i].unwrap_or(0.0);
        let max = recipe.max();
        Ok(RecipeArgs {
            form,
            power_of_two,
            payload,
            cast,
            ignores_nan: i32::from(recipe.amax.nan == NanAmax::Ignored),
            replaces: (0..4).map(present).sum(),
            floor: recipe.amax.floor,
            max,
            inv_max: 1.0 / max,
            zero: value(0),
            overflow: value(1),
            infinite: value(2),
            nan: value(3),
        })
    }
}

/// How a kernel reads or writes scales: `ScaleKind` of `scale.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleKind {
    /// Any f32.
    F32 = 0,
    /// A byte: powers of two only.
    E8m0 = 1,
    /// Such bytes, four along the columns to a word: DeepGEMM's form for SM100,
    /// [`ScaleLayout::PackedUe8m0`](crate::scaled::layout::ScaleLayout::PackedUe8m0).
    PackedE8m0 = 2,
}

/// `ScaleGrid` of `scale.cuh`: where scale (i, j) lies. Strides in scales: (columns, 1) is row-major, (1, rows)
/// MN-major. In [`ScaleKind::PackedE8m0`] the strides are those of the words, in bytes: from row to row, and from four
/// columns to the next four.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleGridArgs {
    /// Device address.
    pub data: u64,
    /// Distance of scales (i, j) and (i + 1, j).
    pub row_stride: i64,
    /// Distance of scales (i, j) and (i, j + 1).
    pub col_stride: i64,
    /// [`ScaleKind`].
    pub kind: i32,
    /// The struct's size is a multiple of 8.
    padding: i32,
}

impl ScaleGridArgs {
    /// A grid; `recipe` is given where a kernel writes it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if E8M0 is asked for a recipe whose scales are not powers of two.
    pub fn new(data: u64, strides: (i64, i64), kind: ScaleKind, recipe: Option<&Recipe>) -> Result<Self> {
        if let Some(recipe) =
            recipe.filter(|r| kind != ScaleKind::F32 && r.scale_format() == ScaleFormat::F32)
        {
            return Err(Error::Unsupported(format!(
                "recipe {} has scales that are no powers of two: they do not fit E8M0",
                recipe.name
            )));
        }
        let (row_stride, col_stride) = strides;
        Ok(ScaleGridArgs { data, row_stride, col_stride, kind: kind as i32, padding: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_device_layout() {
        assert_eq!(size_of::<RecipeArgs>(), 52);
        assert_eq!(std::mem::offset_of!(RecipeArgs, max), 28);
        assert_eq!(std::mem::offset_of!(RecipeArgs, nan), 48);
        assert_eq!(size_of::<ScaleGridArgs>(), 32);
        assert_eq!(std::mem::offset_of!(ScaleGridArgs, kind), 24);
    }

    #[test]
    fn every_e4m3_recipe_but_those_in_f64_is_supported() {
        for recipe in Recipe::ALL {
            let f64_form =
                matches!(recipe.scaling, Scaling::Multiplier { form: MultiplierForm::Reciprocal64, .. });
            let supported = recipe.element == Format::E4M3
                && !f64_form
                && matches!(recipe.scaling, Scaling::Scale { .. } | Scaling::Multiplier { .. });
            assert_eq!(RecipeArgs::try_from(recipe).is_ok(), supported, "{}", recipe.name);
        }
        let te = RecipeArgs::try_from(&Recipe::TE).unwrap();
        assert_eq!((te.form, te.power_of_two, te.payload, te.replaces), (2, 5, 5, 1 | 2 | 8));
    }
}
