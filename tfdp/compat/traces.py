"""The files of TensorFlow's profiler, read without xprof.

for thread, name, begin, end, step, on_device in events(path): ...
"""

from collections.abc import Iterator

_Event = tuple[str, str, int, int, int, bool]


def events(path: str) -> Iterator[_Event]:
    """Yield (thread, name, begin, end, step, on a GPU) of an .xplane.pb, in ns since 1970.

    `tensorflow.tsl` is not documented, and the format is not either: TensorFlow 2.20 and 2.21 have
    both. The lines of a plane count from the beginning of the session, which stands in the plane
    "Task Environment".
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    start = 0
    for plane in space.planes:
        names = {key: meta.name for key, meta in plane.stat_metadata.items()}
        for stat in plane.stats:
            if names[stat.metadata_id] == "profile_start_time":
                start = stat.uint64_value or stat.int64_value
    for plane in space.planes:
        on_device = plane.name.startswith("/device:GPU")
        if not on_device and plane.name != "/host:CPU":
            continue
        stats = {key: meta.name for key, meta in plane.stat_metadata.items()}
        for line in plane.lines:
            # Sums of other lines: they would count twice.
            if on_device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                begin = start + line.timestamp_ns + event.offset_ps // 1000
                step = 0
                for stat in event.stats:
                    if stats[stat.metadata_id] == "step_num":
                        step = stat.int64_value or stat.uint64_value
                name = plane.event_metadata[event.metadata_id].name
                yield line.name, name, begin, begin + event.duration_ps // 1000, step, on_device
