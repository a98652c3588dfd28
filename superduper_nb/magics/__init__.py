"""``%sddb`` and ``%%sddb``: parse a line or a cell, call the client, return a result.

Everything here but :mod:`~superduper_nb.magics.magic` and :mod:`~superduper_nb.magics.extension` runs without IPython;
each sub-command is a function of a :class:`~superduper_nb.magics.call.Call`, and has its Python twin in the client.
"""
