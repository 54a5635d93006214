"""multi-hop: does writing the first hop's state into the second hop answer what the model fails to put together?

    patchscopes study multi-hop --model M [--data PATH] [--quick] [--out DIR]

After section 5 of the paper. [π2][π1] is "The capital of [the country that is home to the Eiffel Tower]"; the model
knows both hops, each by itself.
"""

from patchscopes.studies.multi_hop.study import run

__all__ = ["run"]
