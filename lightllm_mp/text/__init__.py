"""Tokenizers, chat templates, incremental detokenizing and stop strings. No processes, no torch.

Start at `tokenizer.load_tokenizer`, `chat.render_chat` and `detokenizer.IncrementalText`.
"""
