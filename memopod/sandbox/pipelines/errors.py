"""What is wrong with a pipeline file or with the parameters of a run."""


class PipelineError(ValueError):
    """The pipeline cannot be run as written; the message names the offending place."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place
        self.problem = problem
