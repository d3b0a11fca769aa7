"""Seeing a process end, whether it is our child or not, and reaping it if it is."""

from __future__ import annotations

import asyncio
import os

from tei_manager.adapters.drivers import process_table
from tei_manager.ports.driver import Exit

POLL_SECS = 0.5


class ExitWatch:
    """Watches one process until it is gone: `gone` then holds how it ended. Must be made inside the event loop.

    A pidfd names the process itself, so that neither a reused number nor somebody else's child can be taken for
    it. Where there is none (macOS, old kernels), the table is read every 0.5 s.
    """

    def __init__(self, pid: int, start_ticks: int) -> None:
        self._pid, self._start_ticks = pid, start_ticks
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[Exit] = self._loop.create_future()
        self.saw_it = self._is_ours()  # it was there when the watch began
        self.is_proven = False  # for the owner to note that the process is ours to signal
        self._descriptor: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._open()

    def close(self) -> None:
        """Stop watching; the process is left as it is. Those who wait are cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if not self.gone.done():
            self.gone.cancel()

    def _open(self) -> None:
        try:
            self._descriptor = os.pidfd_open(self._pid)
        except ProcessLookupError:
            self._end(Exit())
            return
        except (AttributeError, OSError):
            self._poll()
            return
        # only now is the number pinned, so only now does its start time prove anything
        if not self._is_ours():
            self._end(Exit())
        else:
            self._loop.add_reader(self._descriptor, self._on_readable)

    def _on_readable(self) -> None:
        assert self._descriptor is not None
        try:
            result = os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # not our child, or reaped elsewhere
            self._end(Exit())
            return
        except OSError:  # waitid knows no pidfd before Linux 5.4
            self._switch_to_polling()
            return
        if result is None:
            self._switch_to_polling()
        elif result.si_code == os.CLD_EXITED:
            self._end(Exit(code=result.si_status))
        else:
            self._end(Exit(signal=result.si_status))

    def _switch_to_polling(self) -> None:
        assert self._descriptor is not None
        self._loop.remove_reader(self._descriptor)
        self._poll()

    def _poll(self) -> None:
        if (ended := self._look()) is not None:
            self._end(ended)
        else:
            self._timer = self._loop.call_later(POLL_SECS, self._poll)

    def _look(self) -> Exit | None:
        sight = process_table.look(self._pid)
        if sight is not None and not sight.is_dead and sight.start_ticks != self._start_ticks:
            return Exit()  # the number belongs to somebody else now
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return Exit() if sight is None or sight.is_dead else None
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        return Exit(code=code) if code >= 0 else Exit(signal=-code)

    def _is_ours(self) -> bool:
        sight = process_table.look(self._pid)
        return sight is not None and sight.start_ticks == self._start_ticks

    def _end(self, exit_: Exit) -> None:
        if not self.gone.done():
            self.gone.set_result(exit_)
        self.close()
