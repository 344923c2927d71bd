"""`jaxllm data`: prepares the corpus of a recipe and measures its loader."""

from rich.console import Console
from rich.table import Table


def run(argv: list[str]) -> int:
    """Tokenises and plans the data of the recipe in `argv` (cached), and prints what came of it.

    Raises:
        UserError: a recipe, source, tokenizer or cache that will not do.
    """
    from jaxllm.cli.recipe import load_run

    config = load_run(argv, "jaxllm data")
    from jaxllm.data.corpus import prepare_corpus
    from jaxllm.data.frequencies import unigram_loss
    from jaxllm.data.loader import Loader, loader_speed
    from jaxllm.train.params import with_base_tokenizer

    config = with_base_tokenizer(config)

    corpus = prepare_corpus(config.data, config.tokenizer, progress=True)
    start, rows = config.model.start_token, config.train.batch_size
    loader = Loader(corpus, config.data, rows, config.seed, config.objective, start)
    report = corpus.report
    table = Table("", "", title=f"Data of '{config.name}'", show_header=False)
    unigrams = unigram_loss(loader)
    too_long = f", {loader.left_out:,} pairs longer than a row" if loader.left_out else ""
    for name, value in (
        ("documents", f"{report.documents:,}, of which {report.held_out:,} held out"),
        ("dropped", f"{report.duplicates:,} duplicates, {report.empty:,} empty{too_long}"),
        ("text", f"{report.bytes:,} bytes, of which {corpus.held_out_bytes:,} held out"),
        ("tokens", f"{report.tokens:,}"),
        ("vocabulary", f"{corpus.tokenizer.vocab_size:,} pieces, {report.bytes_per_token:.3f} bytes a token"),
        ("rows", f"{sum(map(len, loader.plans)):,} of {loader.sequence_length:,}"),
        ("packing efficiency", f"{loader.packing_efficiency:.2%}"),
        ("unigrams", "nothing is held out" if unigrams is None else f"loss {unigrams:.4f}, by frequencies alone"),
        ("loader alone", f"{loader_speed(loader):,.0f} tokens/s"),
        ("tokenizer", str(corpus.tokenizer_path)),
    ):
        table.add_row(name, value)
    Console().print(table)
    return 0
