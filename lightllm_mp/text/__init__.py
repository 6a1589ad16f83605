"""Text in and out: tokenizers, chat templates, incremental text. Pure logic, no torch.

Start at `tokenizer.load_tokenizer`, `chat.render_chat` and `detokenizer.IncrementalText`.
"""
