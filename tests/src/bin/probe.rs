//! The process inside a pod; see `tests::probe`.

fn main() -> anyhow::Result<()> {
    tests::probe::run()
}
