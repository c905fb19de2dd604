//! The options that name an arithmetic, and an accumulation as the options that name it.

use std::sync::Once;

use crate::gemm::{Accumulation, Arithmetic, Beside, Fold, LibraryCall, Model, Promotion, SplitK};

use crate::cli::{Failure, output};

// A comment for clap would replace the text of the subcommand: how products become sums, and meet their scales.
#[derive(clap::Args)]
pub(crate) struct ArithmeticArgs {
    /// Accumulation model: f32, exact, ada, hopper, hopper-f16, hopper-tf32, hopper-mma, blackwell, blackwell-f16,
    /// blackwell-mma, blackwell-mx, blackwell-fp4, rtx-blackwell, volta, turing, ampere, cdna3, cdna3-f16, cdna3-xf32, cdna2,
    /// cdna2-bf16, cdna1, cdna1-bf16; with accumulators in f16 hopper:result=f16; or a custom tensor core such as
    /// hopper:f=10,terms=nearest (compare --help lists the parameters); or a library's call, which sets model, promotion and
    /// order: cublaslt-fast, cublaslt, cublaslt-block, deepgemm, triton-deepseek, te-blockwise
    #[arg(long, value_name = "MODEL|CALL", default_value = "f32", value_parser = summed_by)]
    accumulate: SummedBy,

    /// Promotion interval, or none [default: 128 or the finest scale along K; none where the model takes block scales]
    #[arg(long, value_name = "N|none", value_parser = interval)]
    promote: Option<Interval>,

    /// Order in which partial sum, scales and accumulator meet: scales-first, partial-first, scales-last, unfused [default:
    /// scales-first]
    #[arg(long, value_name = "ORDER", value_parser = promotion)]
    promotion: Option<Promotion>,

    /// Cut K into N parts whose results are added, or at these elements: 0,3584
    #[arg(long, value_name = "N|CUTS", default_value = "1")]
    split_k: SplitK,

    /// Multiply the scales into the operands, in BF16 and where that is exact, before anything is summed [promoted every 128
    /// then, unless --promote says otherwise]
    #[arg(long)]
    fold_scales: bool,
}

/// What `--accumulate` names.
#[derive(Clone, Copy, Debug)]
enum SummedBy {
    Model(Model),
    Call(&'static LibraryCall),
}

/// A promotion interval as it is typed.
#[derive(Clone, Copy, Debug)]
enum Interval {
    Every(usize),
    Never,
}

fn summed_by(text: &str) -> crate::Result<SummedBy> {
    match LibraryCall::by_name(text) {
        Some(call) => Ok(SummedBy::Call(call)),
        None => text.parse().map(SummedBy::Model),
    }
}

fn interval(text: &str) -> Result<Interval, String> {
    match text {
        "none" => Ok(Interval::Never),
        _ => text.parse().map(Interval::Every).map_err(|_| "expected a number or none".to_owned()),
    }
}

/// An order; by its old name with a word about that.
fn promotion(text: &str) -> crate::Result<Promotion> {
    say_if_old(text);
    text.parse()
}

/// An arithmetic in one word, such as `hopper/128/scales-last`; with an old name in it with a word about that.
pub(crate) fn arithmetic(text: &str) -> crate::Result<Arithmetic> {
    text.split('/').skip(1).for_each(say_if_old);
    text.parse()
}

/// Says once what an order is called now.
fn say_if_old(name: &str) {
    static SAID: Once = Once::new();
    if Promotion::is_old_name(name) {
        SAID.call_once(|| {
            output::warning(&format!(
                "the order {name} is called {} now: it is what the source of DeepSeek-V3's kernel reads like; on a GPU \
                 that kernel computes {}",
                Promotion::Unfused,
                Promotion::PartialFirst
            ));
        });
    }
}

impl ArithmeticArgs {
    /// The arithmetic, but for what [`ArithmeticArgs::beside`] adds.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a library's call beside what it sets; an interval of 0.
    pub(crate) fn arithmetic(&self) -> Result<Arithmetic, Failure> {
        match (self.accumulate, self.promote) {
            (SummedBy::Call(call), promote) => {
                let beside = match (promote, self.promotion) {
                    (Some(_), _) => "--promote",
                    (None, Some(_)) => "--promotion",
                    (None, None) => return Ok(Arithmetic::Library(call, self.split_k)),
                };
                Err(Failure::Usage(format!(
                    "--accumulate {call} sets model, interval and order ({}): {beside} cannot be used with it",
                    call.arithmetic()
                )))
            }
            (SummedBy::Model(model), None) => Ok(Arithmetic::Fitting(model)),
            (SummedBy::Model(model), Some(Interval::Never)) => Ok(Accumulation::new(model).into()),
            (SummedBy::Model(model), Some(Interval::Every(n))) => {
                Ok(Accumulation::new(model).promote_every(n)?.into())
            }
        }
    }

    /// What is said beside the model or the call.
    pub(crate) fn beside(&self) -> Beside {
        let fold = if self.fold_scales { Fold::Scales } else { Fold::Nothing };
        Beside { promotion: self.promotion, split_k: self.split_k, fold }
    }
}

/// The options of `gemm` that name an accumulation: those that are not the default.
pub(crate) fn options(accumulation: Accumulation) -> Vec<String> {
    let interval = accumulation.interval().map_or("none".to_owned(), |n| n.to_string());
    let mut options = vec![("--accumulate", accumulation.model().to_string()), ("--promote", interval)];
    if accumulation.promotion() != Promotion::default() {
        options.push(("--promotion", accumulation.promotion().to_string()));
    }
    if !accumulation.split_k().is_whole() {
        options.push(("--split-k", accumulation.split_k().to_string()));
    }
    let mut words: Vec<String> =
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    if accumulation.fold() == Fold::Scales {
        words.push("--fold-scales".to_owned());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Only {
        #[command(flatten)]
        args: ArithmeticArgs,
    }

    fn parsed(words: &[&str]) -> ArithmeticArgs {
        Only::try_parse_from([&["it"], words].concat()).unwrap().args
    }

    #[test]
    fn the_last_of_an_option_counts() {
        let words =
            ["--accumulate", "cublaslt", "--promote", "64", "--accumulate", "hopper", "--promote", "128"];
        let args = parsed(&[&words[..], &["--split-k", "2", "--split-k", "0,128"]].concat());
        let Ok(Arithmetic::Fixed(fixed)) = args.arithmetic() else { panic!("not fixed") };
        assert_eq!(
            Arithmetic::Fixed(fixed).completed(fixed, args.beside()).to_string(),
            "hopper/128/split-k=0,128"
        );
    }

    #[test]
    fn calls_stand_alone() {
        for beside in [["--promote", "128"], ["--promote", "none"], ["--promotion", "scales-first"]] {
            let Err(Failure::Usage(message)) =
                parsed(&["--accumulate", "deepgemm", beside[0], beside[1]]).arithmetic()
            else {
                panic!("{beside:?}");
            };
            assert!(message.contains(beside[0]) && message.contains("hopper/128"), "{message}");
        }
        let args = parsed(&["--accumulate", "cublaslt-block", "--split-k", "2"]);
        assert_eq!(args.arithmetic().map_err(|_| ()).unwrap().to_string(), "cublaslt-block/split-k=2");
    }

    #[test]
    fn options_name_the_accumulation() {
        for text in [
            "f32/none",
            "hopper/128/scales-last",
            "hopper:f=10/64/unfused/split-k=3",
            "exact/none/partial-first/split-k=0,128,640",
            "f32/none/split-k=2/fold-scales",
        ] {
            let options = options(text.parse().unwrap());
            let args = parsed(&options.iter().map(String::as_str).collect::<Vec<_>>());
            let Ok(Arithmetic::Fixed(fixed)) = args.arithmetic() else { panic!("{text}") };
            assert_eq!(Arithmetic::Fixed(fixed).completed(fixed, args.beside()).to_string(), text);
        }
    }

    #[test]
    fn the_old_name_is_read() {
        assert_eq!(parsed(&["--promotion", "deepseek-v3"]).promotion, Some(Promotion::Unfused));
        assert_eq!(arithmetic("f32/128/deepseek-v3").unwrap().to_string(), "f32/128/unfused");
    }
}
