"""Tokenizers, chat templates, incremental detokenizing and stop strings. No processes, no torch.

Start at `tokenizer.load_tokenizer`, `chat.rendering.render_chat` and `detokenizer.IncrementalText`.
"""
