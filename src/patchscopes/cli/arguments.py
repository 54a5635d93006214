"""Texts as arguments: one may begin with a dash, as "-5 degrees" does."""

import click

END = "--"


class TextCommand(click.Command):
    """A command whose arguments are texts: what begins with a dash and can be no option is one, also before `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Hand options to click first, then the texts behind `--`."""
        takes_value = {
            name
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        options: list[str] = []
        texts: list[str] = []
        rest = iter(args)
        for argument in rest:
            if argument == END:
                texts += rest
            elif _may_be_option(argument):
                options.append(argument)
                if argument in takes_value and (value := next(rest, None)) is not None:
                    options.append(value)
                elif argument in takes_value:
                    return super().parse_args(ctx, options)  # which says that its value is missing
            else:
                texts.append(argument)
        try:
            return super().parse_args(ctx, [*options, END, *texts])
        except click.NoSuchOption as error:
            message = f"{error.message} A text that begins with a dash goes behind --."
            raise click.NoSuchOption(error.option_name, message, error.possibilities, error.ctx) from None


def _may_be_option(argument: str) -> bool:
    """Return whether an argument looks like an option: dashes, then a word that begins with a letter of ASCII."""
    name = argument.partition("=")[0]
    word = name.lstrip("-")
    return name.startswith("-") and word[:1].isalpha() and name.isascii() and not any(map(str.isspace, name))
