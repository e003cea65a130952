"""Check a graph of torch before torch reads it.

torch evaluates sizes and guards as Python, calls whatever function a graph names, and unpickles
weights of older forms. So torch never gets the file itself, but a copy of what was checked: only
the members, fields, operators, names and expressions that `export` writes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject

ROOT = re.compile(r"[A-Za-z0-9_.-]{1,200}")  # the folder of all members: the file's name
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PROGRAM, EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,9}")
MARKS = {  # small members, and what they may hold
    "archive_format": rb"pt2",
    "archive_version": rb"0",
    "byteorder": rb"little|big",
    ".data/version": rb"\d{1,4}\n",
    ".data/serialization_id": rb"\d{1,60}",
}
MOST_TEXT = 2**26  # bytes of all JSON
MOST_EXPRESSION = 1000  # characters
DEEPEST = 60  # objects in objects
# errors of a file with parts that are missing or of another type
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, EOFError)
NUMBER = 2**63  # a whole number is below this


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators of torch, in all forms, on tensors and numbers alone: those that `export` writes for the
# methods and encoders here, and others of their kind. None reads or writes a file, or calls a
# function by its name.
ATEN = _words(
    """_assert_tensor_metadata abs adaptive_avg_pool2d add addmm alias amax amin arange argmax
    argmin
    argsort atan atan2 avg_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm cat
    ceil chunk clamp clamp_max clamp_min clone column_stack contiguous conv1d conv2d cos
    cosine_similarity cumsum detach diagonal div dot dropout einsum elu embedding eq erf exp expand
    expand_as expm1 flatten flip floor floor_divide fmod full full_like gather ge gelu group_norm
    gt hardsigmoid hardswish hardtanh hstack index index_add index_copy index_put index_select
    instance_norm isnan layer_norm le leaky_relu lift_fresh_copy linalg_vector_norm linear log
    log1p log_softmax logical_and logical_not logical_or logsumexp lt masked_fill matmul max
    max_pool2d maximum mean min minimum mish mm movedim mul mv nan_to_num narrow ne neg new_zeros
    norm numel numpy_T one_hot ones ones_like outer pad permute pixel_shuffle pow prod relu relu6
    remainder repeat repeat_interleave reshape roll round rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter select sigmoid sign silu sin slice softmax softplus sort
    split split_with_sizes sqrt square squeeze stack std sub sum sum_to_size swapaxes sym_size t
    tanh tensor_split tile to topk transpose tril triu type_as unbind unflatten unfold unsqueeze
    upsample_bicubic2d upsample_bilinear2d var view vstack where zeros zeros_like"""
)
OTHERS = _words(
    """torch.ops.higher_order.wrap_with_autocast torch.ops.higher_order.wrap_with_set_grad_enabled
    _operator.add _operator.sub _operator.mul _operator.floordiv _operator.mod _operator.truediv
    _operator.neg _operator.eq _operator.ne _operator.lt _operator.le _operator.gt _operator.ge
    torch.sym_max torch.sym_min"""
)

# Fields of torch's format: those that name a function or an object of other classes are left out
FIELDS = _words(
    """arg as_bool as_bools as_device as_expr as_float as_float_lists as_floats as_graph as_int
    as_int_lists as_ints as_layout as_memory_format as_name as_none as_optional_tensor
    as_optional_tensors as_scalar_type as_string as_strings as_sym_bool as_sym_bools as_sym_float
    as_sym_floats as_sym_int as_sym_ints as_tensor as_tensors buffer buffer_mutation buffer_name
    config constant_input custom_obj_values device dtype expr_str forward_arg_names fqn graph
    graph_module guards_code hint in_spec index input_specs inputs is_hop_single_tensor_return
    is_param is_single_tensor_return kind layout major max_val metadata min_val minor
    module_call_graph name nodes opset_version out_spec output_specs outputs parameter
    parameter_name path_name persistent range_constraints requires_grad schema_version signature
    sizes storage_offset strides sym_bool_values sym_float_values sym_int_values target
    tensor_constant tensor_constant_name tensor_meta tensor_values torch_version
    treespec_namedtuple_fields type use_pickle user_input user_output value verifiers"""
)
# objects whose keys are names
TABLES = _words(
    """config opset_version range_constraints sym_bool_values sym_float_values sym_int_values
    tensor_values"""
)
# fields that no answer depends on
EMPTIED = _words("metadata guards_code custom_obj_values treespec_namedtuple_fields")
NAME = r"(?!__)[A-Za-z0-9_]{1,200}(\.(?!__)[A-Za-z0-9_]{1,200}){0,60}"
FORMS = {  # texts that are no names
    "as_string": r"[A-Za-z0-9 ,.>_-]{0,100}",
    "path_name": r"(weight|tensor)_\d{1,9}",
    "fqn": rf"({NAME})?",
    "name": rf"({NAME})?",
    "torch_version": r"[A-Za-z0-9.+_-]{1,100}",
}
FUNCTIONS = ("Mul", "Add", "Min", "Max", "Mod", "FloorDiv", "PythonMod")
TOKEN = re.compile(
    r"(?P<function>[A-Z][A-Za-z]{1,20})\((?=[A-Z])|(?P<comma>, )|(?P<end>\))|"
    r"(?P<value>Integer\(-?\d{1,19}\)|"
    r"Symbol\('[a-z]{1,6}\d{1,9}'(, (positive|nonnegative|integer)=True){0,3}\))"
)


def checked(file: Path) -> io.BytesIO:
    """Return a copy of a graph's file that holds only what `export` writes.

    Raises UserError for a file that holds anything else, or is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive)
        programs = {name: json.loads(members[name]) for name in (*CONFIGS, PROGRAM)}
        for name, value in programs.items():
            if not isinstance(value, dict):
                raise _Foreign(f"its member {name}")
            members[name] = json.dumps(_value(value, "", 0)).encode()
        for name in CONFIGS:
            _check_tensors(programs[name], members, name.rpartition("/")[0])
    except _Foreign as error:
        raise UserError(
            f"{file}: not a graph as `export` writes it ({error}), so it is not read; export the "
            "run again"
        ) from None
    except (*DAMAGED, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}); export again") from None
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            # with a fixed date: zip has none before 1980, where a clock may stand
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
    copy.seek(0)
    return copy


class _Foreign(Exception):
    """A part that `export` does not write; the message names it."""


def _members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Read all members by their names below the common folder."""
    members: dict[str, bytes] = {}
    roots = {entry.filename.partition("/")[0] for entry in archive.infolist()}
    if len(roots) != 1 or not ROOT.fullmatch(next(iter(roots))):
        raise _Foreign("its members are not in one folder")
    text = 0
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        is_json = name in (*CONFIGS, PROGRAM)
        if name in members or not (
            is_json or name == EXAMPLES or name in MARKS or TENSOR.fullmatch(name)
        ):
            raise _Foreign(f"its member {quoted(name)}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _Foreign(f"its member {quoted(name)} is packed")
        text += is_json * entry.file_size
        if text > MOST_TEXT:
            raise _Foreign(f"more than {MOST_TEXT:,} bytes of JSON")
        members[name] = archive.read(entry)
        if name in MARKS and not re.fullmatch(MARKS[name], members[name]):
            raise _Foreign(f"its member {quoted(name)}")
    if members[EXAMPLES]:
        raise _Foreign("it holds example inputs, which are a pickle")
    return members


def _value(value: object, field: str, depth: int) -> object:
    """Return a JSON value as torch may read it. field: the key that it is under."""
    if depth > DEEPEST:
        raise _Foreign("objects too deep in each other")
    if field in EMPTIED:
        return type(value)()
    if isinstance(value, dict):
        return {
            _key(key, field): _value(part, "" if field in TABLES else key, depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [_value(part, field, depth + 1) for part in value]
    if isinstance(value, str):
        return _text(value, field)
    if isinstance(value, int) and not -NUMBER <= value < NUMBER:
        raise _Foreign(f"a number of more than 64 bits in {field}")
    if field == "use_pickle" and value is not False:
        raise _Foreign("a pickled tensor")
    return value


def _key(key: str, field: str) -> str:
    if not (re.fullmatch(NAME, key) if field in TABLES else key in FIELDS):
        raise _Foreign(f"the field {quoted(key)}")
    return key


def _text(text: str, field: str) -> str:
    if field == "expr_str":
        _check_expression(text)
    elif field == "target":
        operator = re.fullmatch(r"torch\.ops\.aten\.(\w+?)_?\.\w+", text)
        if text not in OTHERS and not (operator and operator[1] in ATEN):
            raise _Foreign(f"the operator {quoted(text)}")
    elif field in ("in_spec", "out_spec"):
        return json.dumps(_structure(json.loads(text)))
    elif not re.fullmatch(FORMS.get(field, NAME), text):
        raise _Foreign(f"{field} {quoted(text)}")
    return text


def _check_expression(text: str) -> None:
    """Raise _Foreign unless a size is a sum, product or the like of whole numbers and symbols, such
    as `Mul(Integer(16), Symbol('s81', positive=True, integer=True))`."""
    bad = _Foreign(f"the size {quoted(text)}")
    if len(text) > MOST_EXPRESSION:
        raise bad
    place, depth, wants_value = 0, 0, True
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise bad
        if match["function"] or match["value"]:
            if not wants_value or match["function"] not in (None, *FUNCTIONS):
                raise bad
            depth += bool(match["function"])
            wants_value = bool(match["function"])
        else:
            if wants_value or not depth:
                raise bad
            depth -= bool(match["end"])
            wants_value = bool(match["comma"])
        place = match.end()
    if depth or wants_value:
        raise bad


def _structure(value: object) -> object:
    """Return the structure of inputs or outputs: tuples, lists and dictionaries of tensors."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != 1:
        raise _Foreign("the structure of its inputs or outputs")
    return [1, _structure_part(value[1])]


def _structure_part(value: object) -> object:
    if not isinstance(value, dict) or value.keys() != {"type", "context", "children_spec"}:
        raise _Foreign("the structure of its inputs or outputs")
    kinds = (None, "builtins.tuple", "builtins.list", "builtins.dict")
    if value["type"] not in kinds or value["context"] not in (None, "null", "[]"):
        raise _Foreign(f"the structure {quoted(value['type'])}")
    return {**value, "children_spec": [_structure_part(part) for part in value["children_spec"]]}


def _check_tensors(config: JsonObject, members: Mapping[str, bytes], place: str) -> None:
    """Raise _Foreign for a tensor without a member: torch would make one of any size."""
    for tensor in config["config"].values():
        sizes = [size["as_int"] for size in tensor["tensor_meta"]["sizes"]]
        if not members[f"{place}/{tensor['path_name']}"] and 0 not in sizes:
            raise _Foreign("a tensor without numbers")
