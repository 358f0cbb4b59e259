"""What carries the epochs of trials from their processes to the one that leads the search.

Ray runs it in a process of its own, which needs no TensorFlow.
"""

import asyncio
from collections import defaultdict
from typing import Any


class Post:
    """Carries the epochs of trials to the driver, and what it answers back."""

    def __init__(self) -> None:
        """Begin without a trial."""
        self._news: defaultdict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self._asking: dict[str, asyncio.Future[Any]] = {}

    async def tell(self, trial: str, news: Any) -> Any:
        """Return what the driver answers to `news` of `trial`."""
        answer = asyncio.get_running_loop().create_future()
        await self._news[trial].put((news, answer))
        return await answer

    async def hear(self, trial: str) -> Any:
        """Return the next news of `trial`."""
        news, self._asking[trial] = await self._news[trial].get()
        return news

    async def answer(self, trial: str, answer: Any) -> None:
        """Answer the news of `trial` that was heard last."""
        if trial in self._asking:
            self._asking.pop(trial).set_result(answer)
