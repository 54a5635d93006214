"""`patchscopes prompts`, `tokens` and `demo`: look before you inspect."""

from typing import Any

import click

from patchscopes.cli.inspect import load_for, model_options


@click.command("prompts")
def prompts_command() -> None:
    """List the library of inspection prompts."""
    from patchscopes.prompts import LIBRARY

    for name, prompt in LIBRARY.items():
        kind = " [chat]" if prompt.chat else ""
        click.echo(f"{name}{kind}: {prompt.about}")
        shown = prompt.text.replace("\n", "\\n") + (f" … {prompt.reply}" if prompt.reply else "")
        click.echo(f"    {shown}   (placeholder {prompt.placeholder})")


@click.command("tokens")
@click.argument("text")
@model_options
@click.option("--bos", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
def tokens_command(text: str, bos: Any, **options: Any) -> None:
    """Show the tokens of TEXT with positions and ids, and what to beware of."""
    from patchscopes.prompts import tokenize
    from patchscopes.prompts.tokens import cautions

    model = load_for(options)
    tokenized = tokenize(model, text, bos=bos)
    click.echo(tokenized.table())
    for caution in cautions(model, tokenized):
        click.echo(f"warning: {caution}", err=True)


@click.command("demo")
@model_options
def demo_command(**options: Any) -> None:
    """Run the main job on a real model: one name over all layers, eight countries, and their controls."""
    from patchscopes.demo import run_demo

    run_demo(lambda: load_for(options), click.echo)
