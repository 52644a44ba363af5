"""Which cluster a command works on, where no sandbox can be meant."""

from pathlib import Path
from typing import Annotated

import typer

KubeconfigOption = Annotated[
    Path | None,
    typer.Option("--kubeconfig", metavar="FILE", help="The cluster. Default: $KUBECONFIG, ~/.kube/config."),
]
