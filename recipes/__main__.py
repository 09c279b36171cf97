"""``python -m recipes`` is the ``recipes`` command."""

from recipes.cli import main

main()
