"""``python -m webhooks``: the command ``webhooks``, where its script is not on the PATH."""

from webhooks.cli import main

if __name__ == "__main__":
    main()
