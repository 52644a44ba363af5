import re
from pathlib import Path

from memopod.steps.reasons import SENTENCES

ROOT = Path(__file__).parents[2]


def test_every_reason_in_the_code_has_a_sentence_and_every_sentence_is_used():
    code = "".join(
        path.read_text()
        for folder in ("cache_server", "memopod/steps", "memopod/cli")
        for path in (ROOT / folder).glob("*.py")
        if path.name != "reasons.py"
    )
    quoted = set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)*)"', code))
    assert set(SENTENCES) - quoted == set()
    said = set(re.findall(r'(?:reason=|Unkeyable\(|NotAStep\()"([a-z][^"]*)"', code)) - {"held"}
    assert said - set(SENTENCES) == set()
