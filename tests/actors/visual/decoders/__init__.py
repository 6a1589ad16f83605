"""Programs that stand for the decoder process, each wrong in another way."""
