"""Tool calls and reasoning in the text of an answer: parsers that read text in pieces, and grammars of valid calls.

Start at `formats.detect_formats` and `reply.reply_parser`. No tokens, no engine, no torch.
"""
