//! What did my library compute? Its call, and the arithmetic that gives every bit of it, as a table.
//!
//! ```sh
//! cargo run --release --example library_calls
//! ```

use finegrain::gemm::LibraryCall;

fn main() {
    println!("| `--accumulate` | arithmetic | recorded on | what is called |\n|---|---|---|---|");
    for call in LibraryCall::ALL {
        let arithmetic = call.arithmetic();
        println!("| `{call}` | {arithmetic} | {} | {} |", call.recorded(), call.call());
    }
}
