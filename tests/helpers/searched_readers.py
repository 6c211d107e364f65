"""Every reader of files that people bring along, with good files to damage: what hypothesis
(tests/search/test_damaged_files.py) and the fuzzer (tests/search/fuzz.py) try."""

from functools import partial

from depthdist.core.errors import BadFile
from helpers import searched_captures as captures
from helpers import searched_runs as runs
from helpers import searched_shards as shards
from helpers.scratch import Reader

READERS = {
    "point map": Reader(captures.point_maps, captures.read_point_map, BadFile),
    **{
        f"points{suffix}": Reader(
            partial(captures.point_files, suffix),
            partial(captures.read_point_file, suffix),
            BadFile,
        )
        for suffix in (".zdf", ".npz", ".ply", ".pcd")
    },
    "depth PNG": Reader(captures.depth_pngs, captures.read_depth_png, BadFile),
    "depth TIFF": Reader(captures.depth_tiffs, captures.read_depth_tiff, BadFile),
    "camera JSON": Reader(captures.camera_jsons, captures.read_camera_json, BadFile, is_json=True),
    "camera text": Reader(captures.camera_texts, captures.read_camera_text, BadFile),
    "dataset YAML": Reader(captures.dataset_yamls, captures.read_dataset_yaml, BadFile),
    "list of times": Reader(captures.time_lists, captures.read_time_list, BadFile),
    "image": Reader(captures.images, captures.read_image, BadFile),
    "groove label": Reader(captures.labels, captures.read_one_label, BadFile),
    "groups": Reader(captures.groups_files, captures.read_groups_file),
    "index": Reader(shards.indexes, shards.read_own_index, is_json=True, slow=True),
    "external index": Reader(
        shards.external_indexes, shards.read_external_index, is_json=True, slow=True
    ),
    "table": Reader(shards.tables, shards.read_table),
    "names": Reader(shards.names_files, shards.read_names),
    "own tar": Reader(shards.own_tars, shards.read_own_tar),
    "external tar": Reader(shards.external_tars, shards.read_external_tar, slow=True),
    "meta": Reader(shards.metas, shards.read_meta, is_json=True, slow=True),
    "commit record": Reader(shards.records, shards.read_commit_record, is_json=True),
    "rejects": Reader(shards.reject_lists, shards.read_reject_list, is_json=True),
    "config": Reader(captures.configs, captures.read_config, is_json=True),
    "adapter record": Reader(runs.adapter_records, runs.read_adapter_record, is_json=True),
    "adapter weights": Reader(runs.adapter_weights, runs.read_adapter_weights, slow=True),
    "adapter config": Reader(
        runs.adapter_configs, runs.read_adapter_config, is_json=True, slow=True
    ),
    "run record": Reader(runs.run_records, runs.read_run_record, is_json=True),
    "evaluation": Reader(runs.evaluations, runs.read_evaluation, is_json=True),
    "log": Reader(runs.run_logs, runs.read_run_log, is_json=True),
    "done list": Reader(runs.done_logs, runs.read_done, is_json=True),
    "state manifest": Reader(runs.manifests, runs.read_manifest, is_json=True),
    "state values": Reader(runs.state_values, runs.read_state_values, is_json=True),
    "state tensors": Reader(runs.state_tensors, runs.read_state_tensors),
}
