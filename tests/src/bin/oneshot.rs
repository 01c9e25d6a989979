fn main() -> std::process::ExitCode {
    tests::oneshot::main()
}
