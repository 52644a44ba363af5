from memopod.lineage.model import Execution, State
from memopod.lineage.values import Match, matches


def step(number, *, inputs=None, outputs=None, start=0, end=0, uid="w"):
    return Execution(
        id=number,
        step=f"s{number}",
        run="r",
        component="c",
        state=State.COMPLETE,
        inputs=inputs or {},
        outputs=outputs or {},
        started_at=start,
        finished_at=end,
        workflow_uid=uid,
    )


def test_an_input_with_the_value_of_an_earlier_output_matches():
    first = step(1, outputs={"text": "hello world"}, start=0, end=5)
    second = step(2, inputs={"message": "hello world"}, start=5, end=9)
    assert matches([second, first]) == [Match(1, "text", 2, "message")]


def test_a_short_value_matches_nothing_since_it_may_be_equal_by_accident():
    first = step(1, outputs={"flag": "true"}, end=5)
    assert matches([first, step(2, inputs={"flag": "true"}, start=5)]) == []


def test_a_value_that_two_outputs_have_matches_neither():
    sources = [step(number, outputs={"text": "hello world"}, end=5) for number in (1, 2)]
    assert matches([*sources, step(3, inputs={"message": "hello world"}, start=5)]) == []


def test_a_step_that_started_before_the_output_was_written_does_not_match():
    first = step(1, outputs={"text": "hello world"}, end=5)
    assert matches([first, step(2, inputs={"message": "hello world"}, start=4)]) == []


def test_a_step_without_times_does_not_match():
    first = step(1, outputs={"text": "hello world"}, end=None)
    assert matches([first, step(2, inputs={"message": "hello world"}, start=4)]) == []


def test_a_step_does_not_match_itself():
    assert matches([step(1, inputs={"a": "hello world"}, outputs={"b": "hello world"})]) == []


def test_two_workflows_that_had_the_same_name_do_not_mix():
    first = step(1, outputs={"text": "hello world"}, end=5, uid="earlier")
    assert matches([first, step(2, inputs={"message": "hello world"}, start=5, uid="later")]) == []


def test_a_decoded_value_equals_its_text():
    first = step(1, outputs={"rates": [0.1, 0.2]}, end=5)
    second = step(2, inputs={"rates": "[0.1, 0.2]"}, start=5)
    assert matches([first, second]) == [Match(1, "rates", 2, "rates")]
