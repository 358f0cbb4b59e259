"""The load of the machine while a run lasts."""

import contextlib

from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from emotion_detection.console import UserError
from emotion_detection.tracking.outbox import Outbox, now

SECONDS = 5
"""Between two measurements."""


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's metrics of processor, memory and GPU, logged through the outbox."""

    def __init__(self, outbox: Outbox, run_id: str) -> None:
        """Log to the run `run_id` from `start` to `finish`."""
        super().__init__(run_id, SECONDS, resume_logging=True)
        # Nobody makes a training faster by the totals of disks and network.
        for kind in (DiskMonitor, NetworkMonitor):
            self.monitors.remove(next(each for each in self.monitors if isinstance(each, kind)))
        self._outbox, self._run = outbox, run_id

    def monitor(self) -> None:
        """Measure until `finish` is called."""
        ended = False
        while not ended:
            # Once more at the end: a run may be over before the first interval is.
            ended = self._shutdown_event.wait(self.sampling_interval)
            self.collect_metrics()
            metrics = {f"system/{name}": value for name, value in self.aggregate_metrics().items()}
            for monitor in self.monitors:
                monitor.clear_metrics()
            # A full disk ends the stage where it logs; this thread leaves it to that.
            with contextlib.suppress(UserError):
                self._outbox.append(
                    {
                        "do": "log",
                        "run": self._run,
                        "at": now(),
                        "metrics": metrics,
                        "step": self._logging_step,
                    }
                )
            self._logging_step += 1
