"""`patchscopes prompts`, `tokens` and `demo`: look before you inspect."""

from typing import Any

import click

from patchscopes.cli.arguments import TextCommand
from patchscopes.cli.inspect import MASK_HELP, TARGET_AT_HELP, load_for, model_options
from patchscopes.cli.values import WORDS
from patchscopes.errors import OptionError


@click.command("prompts")
def prompts_command() -> None:
    """List the library of inspection prompts."""
    from patchscopes.prompts import LIBRARY

    for name, prompt in LIBRARY.items():
        kind = " [chat]" if prompt.chat else ""
        click.echo(f"{name}{kind}: {prompt.about}")
        shown = prompt.text.replace("\n", "\\n") + (f" … {prompt.reply}" if prompt.reply else "")
        click.echo(f"    {shown}   (placeholder {prompt.placeholder})")


@click.command("tokens", cls=TextCommand)
@click.argument("text", required=False, type=WORDS)
@model_options
@click.option(
    "--prompt",
    default=None,
    type=WORDS,
    help="An inspection prompt instead of TEXT: what is written, and masked, is marked.",
)
@click.option("--placeholder", default=None, type=WORDS, help="The one-token word that stands at {}.")
@click.option("--target-at", default=None, type=WORDS, help=TARGET_AT_HELP)
@click.option("--target-mask", default=None, type=WORDS, metavar="PHRASE", help=MASK_HELP.format("prompt"))
@click.option("--bos", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
def tokens_command(text: str | None, prompt: str | None, bos: Any, **options: Any) -> None:
    """Show the tokens of TEXT, or of an inspection prompt, with positions and ids, and what to beware of."""
    from patchscopes.prompts import find_prompt, resolve_target, tokenize
    from patchscopes.prompts.tokens import bos_caution, cautions

    named = {key: options.pop(key) for key in ("placeholder", "target_at", "target_mask")}
    if (text is None) == (prompt is None):
        raise OptionError(
            'give a text, as in patchscopes tokens "I went to Spain", or a prompt by --prompt; one of them.'
        )
    if prompt is not None:
        found = find_prompt(prompt, placeholder=named["placeholder"], at=named["target_at"], mask=named["target_mask"])
        model = load_for(options)
        target = resolve_target(model, found, bos=bos)
        click.echo(target.tokenized.table(target.positions, target.masked))
        if target.masked:
            click.echo("> is overwritten; - is masked: no later token can attend to it")
        written = found.text + found.reply if found.chat else target.tokenized.text
        if caution := bos_caution(model, target.tokenized.ids, written, "the prompt"):
            click.echo(f"warning: {caution}", err=True)
        return
    if without := [f"--{key.replace('_', '-')}" for key, value in named.items() if value is not None]:
        raise OptionError(f"{without[0]} is about an inspection prompt; give one by --prompt instead of a text.")
    model = load_for(options)
    tokenized = tokenize(model, str(text), bos=bos)
    click.echo(tokenized.table())
    for caution in cautions(model, tokenized):
        click.echo(f"warning: {caution}", err=True)


@click.command("demo")
@model_options
def demo_command(**options: Any) -> None:
    """Run the main job on a real model: one name over all layers, eight countries, and their controls."""
    from patchscopes.demo import run_demo

    run_demo(lambda: load_for(options), click.echo)
