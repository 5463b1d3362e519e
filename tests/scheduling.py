"""How pytest-xdist deals the tests out: ./scripts/test -n 3 --dist loadscope."""

from xdist.scheduler import LoadScopeScheduling

# Files with clusters at a time, whatever number of processes runs tests: their tasks are to keep to
# deadlines.
CLUSTERS = 2


def is_cluster(scope: str) -> bool:
    return scope.startswith("tests/cluster/")


class Scheduling(LoadScopeScheduling):
    """A file of tests/cluster stays together, for what its tests share; other tests come singly."""

    def _split_scope(self, nodeid):
        return nodeid.partition("::")[0] if is_cluster(nodeid) else nodeid

    def _assign_work_unit(self, node):
        others = [scopes for other, scopes in self.assigned_work.items() if other is not node]
        busy = sum(
            any(is_cluster(scope) and not all(tests.values()) for scope, tests in scopes.items())
            for scopes in others
        )
        if busy >= CLUSTERS:
            single = next((scope for scope in self.workqueue if not is_cluster(scope)), None)
            if single is not None:
                self.workqueue.move_to_end(single, last=False)
        super()._assign_work_unit(node)
