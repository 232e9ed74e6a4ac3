"""CLASS: every metric of a run as a line of one table."""

from collections.abc import Mapping

import st


class CLASS(st.Tracker):
    """Write metrics to a table of comma-separated values."""

    class Options(st.Options):
        file: str = "metrics.csv"
        """Name of the table in the run's folder."""

    options: Options

    def start(self, run: st.RunInfo) -> None:
        file = run.directory / self.options.file
        rows = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        self.table = file.open("w", encoding="utf-8")
        # Later steps are taken again.
        self.table.writelines(row for row in rows if int(row.partition(",")[0]) <= run.step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.table.writelines(f"{step},{name},{value}\n" for name, value in metrics.items())

    def finish(self, outcome: st.Outcome) -> None:
        self.table.close()
