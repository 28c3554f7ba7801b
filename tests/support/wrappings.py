"""Wrappings that real replies put around an answer. A grade survives each of them, and several together."""

from __future__ import annotations

import json
from collections.abc import Callable

Wrap = Callable[[str], str]

OUTER: dict[str, Wrap] = {
    "think": lambda answer: f"<think>\nIs it 8, A or \\boxed{{9}}?\n</think>\n\n{answer}",
    "reasoning": lambda answer: f"<reasoning>The answer is 8.</reasoning>{answer}",
    "answer tag": lambda answer: f"First this, then that.\n<answer>{answer}</answer>",
    "final answer tag": lambda answer: f"<final_answer>\n{answer}\n</final_answer>",
    "box token": lambda answer: f"<|begin_of_box|>{answer}<|end_of_box|>",
    "bracket tag": lambda answer: f"[ANSWER]{answer}[/ANSWER]",
    "json": lambda answer: json.dumps({"reasoning": "I add 3 and 5.", "answer": answer}),
    "one-key json": lambda answer: json.dumps({"final_answer": answer}, ensure_ascii=False),
    "fenced json": lambda answer: f"Here:\n```json\n{json.dumps({'answer': answer}, indent=2)}\n```",
    "inline json": lambda answer: f"The result is {json.dumps({'answer': answer})}.",
    "fence": lambda answer: f"```\n{answer}\n```",
    "tilde fence": lambda answer: f"~~~text\n{answer}\n~~~",
    "end of sentence": lambda answer: f"{answer}</s>",
    "full-width mark": lambda answer: f"{answer}<\uff5cend\u2581of\u2581sentence\uff5c>",
    "stop": lambda answer: answer if answer.endswith(".") else f"{answer}.",
    "byte order mark": lambda answer: f"\ufeff{answer}\u200b",
    "colon": lambda answer: f"Answer: {answer}",
    "full-width colon": lambda answer: f"Answer\uff1a{answer}",
    "bold colon": lambda answer: f"**Final Answer:** {answer}",
    "sentence": lambda answer: f"The correct answer is {answer}",
    "Chinese": lambda answer: f"\u7b54\u6848\uff1a{answer}",
    "html": lambda answer: f"<p>{answer}</p>",
}
"""Wrappings of a reply."""

TURNS: dict[str, Wrap] = {
    "closed think": lambda answer: f"It may be 8.\n</think>\n{answer}",
    "harmony": lambda answer: (
        f"<|channel|>analysis<|message|>8?<|end|><|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
    ),
    "end mark": lambda answer: f"{answer}<|im_end|>\n<|im_start|>user\nWhat is 8?",
}
"""Wrappings of a whole turn of a chat, around all others."""

INNER: dict[str, Wrap] = {
    "double quotes": lambda answer: f'"{answer}"',
    "single quotes": lambda answer: f"'{answer}'",
    "curly quotes": lambda answer: f"\u201c{answer}\u201d",
    "single curly quotes": lambda answer: f"\u2018{answer}\u2019",
    "guillemets": lambda answer: f"\u00ab{answer}\u00bb",
    "German quotes": lambda answer: f"\u201e{answer}\u201c",
    "corner brackets": lambda answer: f"\u300c{answer}\u300d",
    "ticks": lambda answer: f"`{answer}`",
    "bold": lambda answer: f"**{answer}**",
    "underlined bold": lambda answer: f"__{answer}__",
    "bullet": lambda answer: f"- {answer}",
    "round bullet": lambda answer: f"\u2022 {answer}",
    "spaces": lambda answer: f"\u00a0 {answer}\u3000",
}
"""Wrappings of an answer of one line."""

LATEX: dict[str, Wrap] = {
    "dollars": lambda answer: f"${answer}$",
    "double dollars": lambda answer: f"$${answer}$$",
    "parentheses": lambda answer: f"\\({answer}\\)",
    "brackets": lambda answer: f"\\[\n{answer}\n\\]",
    "box": lambda answer: f"So it is $\\boxed{{{answer}}}$.",
    "text": lambda answer: f"\\text{{{answer}}}",
    "roman": lambda answer: f"\\mathrm{{{answer}}}",
    "boxed text": lambda answer: f"\\boxed{{\\textbf{{{answer}}}}}",
}
"""Wrappings in LaTeX."""
