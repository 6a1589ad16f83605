"""What the scripted engine answers, by the question."""

from __future__ import annotations

MARKDOWN = """# A heading

Some **bold**, *slanted* and `code`, and a [link](https://example.org/a?b=c).

```python
def add(a: int, b: int) -> int:
    return a + b
```

| planet | moons |
|:-------|------:|
| Mars   |     2 |

The formula $a^2 + b^2 = c^2$ is old, and so is

$$\\int_0^1 x\\,dx = \\frac{1}{2}$$

1. one
2. two
"""
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
ANSWERS = {
    "markdown": MARKDOWN,
    "think": "<think>Hm, well.\n\nLet me see.</think>So it is.",
    "call": CALL,
    "Sunny, 21 °C": "It is sunny in Paris.",
    "slow": "It is a long way. " * 12,
    "Hello": ", dear reader.",
    "json": '{"country":"France","capital":"Paris"}',
}
