"""Workers that are threads here, connected by what carries sums between processes."""

import concurrent.futures
import threading

from tfdp.fit.replicas import gloo, shared_memory


class Store:
    """What the coordination service is for a cluster."""

    def __init__(self):
        self._texts = {}
        self._changed = threading.Condition()

    def share(self, key, text):
        with self._changed:
            self._texts[key] = text
            self._changed.notify_all()

    def shared(self, key, seconds):
        with self._changed:
            self._changed.wait_for(lambda: key in self._texts, seconds)
            return self._texts.get(key)


class Workers:
    """Connected workers, which do the same at the same time."""

    def __init__(self, kind, size):
        self.store, self.size = Store(), size
        self.pool = concurrent.futures.ThreadPoolExecutor(size)
        self.all = self.each(lambda rank: connect(kind, rank, size, self.store))

    def each(self, call):
        return [f.result(60) for f in [self.pool.submit(call, n) for n in range(self.size)]]

    def sum(self, arrays_of):
        return self.each(lambda rank: self.all[rank].sum(arrays_of[rank]))

    def close(self):
        for one in self.all:
            one.close()
        self.pool.shutdown()


def connect(kind, rank, size, store, **options):
    if kind == "gloo":
        return gloo.Gloo(rank, size, "127.0.0.1", store.share, store.shared, **options)
    return shared_memory.SharedMemory(rank, size, store.share, store.shared, **options)
