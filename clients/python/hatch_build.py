"""The build of the client: each contract travels beside the code that was generated from it."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ContractsHook(BuildHookInterface[Any]):
    """Puts the .proto files into the wheel below genaid/, and into the source distribution below protos/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files that the build takes from outside of this folder (called by hatchling).

        Raises FileNotFoundError where there is no contract to take.
        """
        if version == "editable":
            return
        # In a source distribution the contracts lie in the project itself.
        homes = (Path(self.root) / "protos", Path(self.root).parent.parent / "protos")
        protos = next((home for home in homes if home.is_dir()), homes[0])
        contracts = sorted(protos.rglob("*.proto"))
        if not contracts:
            raise FileNotFoundError(f"There are no .proto files below {protos}.")
        below = "protos/" if self.target_name == "sdist" else ""
        for contract in contracts:
            build_data["force_include"][str(contract)] = below + contract.relative_to(protos).as_posix()
