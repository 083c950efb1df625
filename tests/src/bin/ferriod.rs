//! ferriod, as built for the tests of this tree.

fn main() -> std::process::ExitCode {
    ferriod::main()
}
