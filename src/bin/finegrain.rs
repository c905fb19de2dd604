//! The `finegrain` program: all of it is [`finegrain::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    finegrain::cli::run(std::env::args_os())
}
