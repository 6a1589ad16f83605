"""What a model may say to become markup, a script, or a request to another host."""

from __future__ import annotations

PWN = "window.pwned=1"
"""A script that a test can see."""

HOSTILE = {
    "script": f"<script>{PWN}</script>",
    "image with a handler": f'<img src=x onerror="{PWN}">',
    "svg with a handler": f'<svg onload="{PWN}"><script>{PWN}</script></svg>',
    "iframe": f'<iframe srcdoc="<script>parent.{PWN}</script>"></iframe>',
    "details": f'<details open ontoggle="{PWN}"><summary>x</summary></details>',
    "style": "<style>body{display:none}</style><link rel=stylesheet href=//evil.example/x.css>",
    "base and meta": '<base href="//evil.example/"><meta http-equiv=refresh content="0;url=//evil.example">',
    "form": f'<form action="//evil.example"><input name=attributes><button formaction="javascript:{PWN}">x</button>',
    "javascript link": f"[click](javascript:{PWN})",
    "spelled link": f"[click](java&#x0A;script:{PWN}) [y](JaVaScRiPt&colon;{PWN}) [x](<java\tscript:{PWN}>)",
    "javascript autolink": f"<javascript:{PWN}> [ref]\n\n[ref]: javascript:{PWN}",
    "data links": "[a](data:text/html,<script>x</script>) [b](vbscript:x) [c](file:///etc/passwd) [d](blob:x)",
    "far picture": "![x](http://evil.example/p.png) ![y](//evil.example/q.png) ![z][r]\n\n[r]: https://evil.example",
    "picture that is a script": f"![x](javascript:{PWN}) ![x](data:image/svg+xml,<svg/onload={PWN}>)",
    "title": f'[x](http://a.example \'" onmouseover="{PWN}\') ![" onerror="{PWN}](x "\' onerror=\'{PWN}")',
    "language": f'```"><img src=x onerror={PWN}>\ncode\n```\n\n~~~ html onload={PWN}\n<script>{PWN}</script>\n~~~',
    "code that ends early": f"```html\n</code></pre><script>{PWN}</script>\n```\n`</code><img src=x onerror={PWN}>`",
    "unfinished fence": f"```html\n<img src=x onerror={PWN}>",
    "table": f"| a | <b onclick={PWN}>b</b> |\n|---|:--|\n| <script>{PWN}</script> | [x](javascript:{PWN}) |",
    "entities": f"&lt;script&gt;{PWN}&lt;/script&gt; &#60;img src=x onerror={PWN}&#62;",
    "comment and cdata": f"<!--><script>{PWN}</script>--> <![CDATA[<script>{PWN}</script>]]> <?php x ?>",
    "mutation": f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={PWN}&gt;">',
    "noscript": f'<noscript><p title="</noscript><img src=x onerror={PWN}>"></noscript>',
    "template": f"<template><script>{PWN}</script></template><slot onslotchange={PWN}>",
    "clobbering": "<a id=app></a><a id=main name=main></a><form id=document name=body>",
    "formula with a link": f"$\\href{{javascript:{PWN}}}{{x}}$ \\(\\url{{javascript:{PWN}}}\\)",
    "formula attributes": f"$$\\htmlData{{onclick={PWN}}}{{x}} \\htmlStyle{{top:0}}{{y}} \\htmlId{{app}}{{z}}$$",
    "formula with a picture": "$$\\includegraphics[height=1em]{http://evil.example/p.png}$$",
    "formula without an end": "$$\\def\\a{\\a\\a}\\a$$ $\\frac{$ \\[\\begin{matrix} \\] $" + "{" * 300,
    "formula that is markup": f"$<img src=x onerror={PWN}>$ $$\\text{{<script>{PWN}</script>}}$$",
    "directions and nothings": "\u202e\u2066<b>\u2069 a\u0000b \ufeff \u200b \ud7ff \x1b[31m \x07",
    "prototype": '__proto__ constructor {"__proto__": {"pwned": 1}} ${pwned} {{pwned}} <%= pwned %>',
    "footnotes and headings": f"# <script>{PWN}</script>\n## [x](javascript:{PWN})\n[^1]: <b>\n- [ ] <b>x</b>",
    "deep quotes": ">" * 2000 + " x",
    "deep lists": "\n".join(" " * (2 * depth) + "- x" for depth in range(150)),
    "deep emphasis": "*" * 3000 + "x" + "_" * 3000,
    "deep brackets": "[" * 3000 + "x" + "](" * 1000,
    "one long line": "x" * 20_000,
}
"""name -> text"""

LEFT_OVER = """known => {
  const scripts = [...document.scripts].length;
  const bad = scripts === known ? [] : [`${scripts} scripts instead of ${known}`];
  if (window.pwned !== undefined || ({}).pwned !== undefined) bad.push("a script ran");
  const never = "script,iframe,frame,object,embed,base,meta,link,style,form,video,audio,source,template,slot,noscript";
  const addresses = ["href", "src", "action", "formaction", "xlink:href", "poster", "background"];
  for (const element of document.querySelectorAll("article *")) {
    if (element.matches(never)) bad.push(element.outerHTML.slice(0, 200));
    const schemes = element.localName === "img" ? ["data:", "blob:"] : ["http:", "https:", "mailto:"];
    for (const {name, value} of element.attributes) {
      const harmful = name.startsWith("on") || ["style", "srcdoc", "srcset"].includes(name);
      const scheme = URL.canParse(value, location.href) ? new URL(value, location.href).protocol : value;
      const leads = addresses.includes(name) && !schemes.some(one => scheme.startsWith(one));
      if (harmful || leads) bad.push(`${element.localName} ${name}=${value}`);
    }
  }
  return bad;
}"""
"""A script for a page: what of an answer is markup that the page does not make. `known`: its own scripts."""
