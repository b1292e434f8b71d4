"""`python -m scaleaudio` is the same program as `scaleaudio`."""

from scaleaudio.cli import main

main()
