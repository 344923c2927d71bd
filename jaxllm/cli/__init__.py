"""One file for each subcommand of `jaxllm`, each with `run(argv) -> exit status`. Only here is everything composed."""
