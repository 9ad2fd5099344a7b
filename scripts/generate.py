"""Writes what follows from the contract: `make generate`. A test holds the files to it.

Whole files have a first line that says so; parts of files stand between two marker lines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import architecture  # noqa: E402
from sgl_admin.contract import (  # noqa: E402
    exit_codes,
    labels,
    options,
    places,
    profiles,
    services,
    stages,
)
from sgl_admin.contract.options import Option  # noqa: E402
from slice_bench import caller, cli  # noqa: E402

HEADER = "# Generated from plugins/module_utils/_contract by `make generate`.\n"
WIDTH = 100
EXAMPLES = "tests/contract/examples"


def role_defaults() -> str:
    """roles/settings/defaults/main.yml: every variable's default; omitted where it has none."""
    lines = [f"{option.name}: {_default(option)}" for option in options.OPTIONS]
    lines.append("# The profile that is prepared now, with the variables that it sets.")
    lines.append("settings_profile: {}")
    return f"---\n{HEADER}" + "".join(f"{line}\n" for line in lines)


def profile_tasks() -> str:
    """playbooks/tasks/profile.yml: tasks with the variables of a profile."""
    lines = [
        f"    {option.name}: {_jinja(f'settings_profile.{option.name} | default(omit)')}\n"
        for option in profiles.VARIABLES.values()
    ]
    return f"---\n{HEADER}{_PROFILE_TASKS}" + "".join(lines)


_PROFILE_TASKS = """\
# settings_profile is what the lookup profiles returns, profile_tasks a path from the playbook.
# What tasks noted for the profile before it, this one must not take for its own.
- name: Begin with what the preflight found for the profile
  ansible.builtin.set_fact:
    preflight_host: "{{ prep_found[settings_profile.name] }}"
    cache_share_lacks: []
    cache_share_asked: false
    cache_share_not_given: ""
    cache_share_given: {}
  when: settings_profile.name in prep_found | default({})

- name: Go on with the profile
  ansible.builtin.include_tasks: "{{ profile_tasks }}"
  vars:
"""


def _default(option: Option) -> str:
    if option.jinja:
        return f">-\n  {{{{ {option.jinja} }}}}" if len(option.jinja) > 60 else _jinja(option.jinja)
    if option.default is None:
        return _jinja("omit")
    return json.dumps(option.default)


def _jinja(expression: str) -> str:
    return f'"{{{{ {expression} }}}}"'


def role_vars() -> str:
    """roles/settings/vars/main.yml: what follows from the variables."""
    always, everything = services.ports_of(gpu=False), services.ports_of(gpu=True)
    gpu = {name: port for name, port in everything.items() if name not in always}
    roots = {mount.variable: f"preflight_host.tree.paths.{mount.folder}" for mount in places.MOUNTS}
    environment = {
        option.variable: f"{option.name} | string" for option in options.OPTIONS if option.variable
    }
    blocks = {
        "# Ports by service, of every flavour.\nsettings_ports": _ports(always),
        "# Those that only a flavour for GPUs has.\nsettings_gpu_ports": _ports(gpu),
    }
    blocks["# What a prep is asked for.\nsettings_prep_request"] = _prep_request()
    volumes = [f"{roots[mount.variable]} ~ ':{mount.target}'" for mount in places.MOUNTS]
    pairs = [f"'{name}': {value}" for name, value in (environment | roots).items()]
    text = "".join(
        f"{title}:\n" + "".join(f"  {key}: {value}\n" for key, value in block.items())
        for title, block in blocks.items()
    )
    # One expression each: Ansible compiles each template once more for each task of each host.
    text += "# The container's environment.\n"
    text += _expression("settings_container_environment", "{", pairs, "}")
    text += "# Bind mounts.\n" + _expression("settings_volumes", "[", volumes, "]")
    text += "# The label that has the digest of all that makes a container.\n"
    text += f"settings_container_label: {labels.CONTAINER_LABEL}\n"
    cuda = json.loads(_read("roles/image/files/flavours/gh200/build.json"))["base_cuda"]
    text += f'# The release of CUDA in the base of the gh200 image.\nsettings_base_cuda: "{cuda}"\n'
    return f"---\n{HEADER}{text}"


def _expression(name: str, begin: str, parts: list[str], end: str) -> str:
    return f"{name}: >-\n  {{{{ {begin}" + ",\n     ".join(parts) + f"{end} }}}}\n"


def _prep_request() -> dict[str, str]:
    request = {"model": '"/models/{{ sgl_model }}"'}
    for stage in stages.STAGES:
        request[stage.option] = _jinja(f"sgl_stages.{stage.option} | default('{stage.default}')")
    for name, option in options.of_module(options.PREP):
        if name != "container":
            request[name] = _jinja(option.name)
    return request


def _ports(ports: dict[str, services.Port]) -> dict[str, str]:
    return {name: _jinja(port.option) for name, port in ports.items()}


def preflight_spec() -> str:
    """roles/preflight/meta/argument_specs.yml: the manual of every variable."""
    return _role_spec(
        {
            "short_description": "The variables of this collection, and the check of every host",
            "description": [
                "Set these variables in the inventory. All roles and playbooks read them.",
                "The role checks each variable and inspects the host before anything changes.",
            ],
            "options": _documented(o for o in options.OPTIONS if o not in options.GRAFANA),
        }
    )


def dashboard_spec() -> str:
    """roles/dashboard/meta/argument_specs.yml: the variables of Grafana's machine."""
    own = "|".join(option.name for option in options.GRAFANA)
    text = _role_spec(
        {
            "short_description": "Grafana datasources and dashboards for the hosts of group sglang",
            "description": [
                "Runs on the hosts of group C(grafana), where Grafana is installed already.",
                "Gives Grafana a datasource for each host of group C(sglang), and two dashboards.",
            ],
            "options": _documented(options.GRAFANA),
        }
    )
    # The GPU hosts' variables are no options of this role.
    return re.sub(rf"O\((?!(?:{own})\))(\w+)\)", r"C(\1)", text)


def _documented(wanted: Any) -> dict[str, Any]:
    return {option.name: option.documented() for option in wanted}


def _role_spec(main: dict[str, Any]) -> str:
    document = {"argument_specs": {"main": main}}
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=WIDTH - 4)
    return f"---\n{HEADER}{text}"


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists are indented, as ansible-lint wants them."""
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def doc_fragments() -> str:
    """plugins/doc_fragments/options.py: options that are variables too, for the modules' manuals.

    As text, because ansible-test reads it without running it.
    """
    named = {
        "HOST_INFO": dict(options.of_module(options.INFO)),
        "PREP": options.prep_options(),
    }
    constants = "".join(
        f'    {name} = r"""\n{_fragment(fragment)}"""\n' for name, fragment in named.items()
    )
    return f"{_FRAGMENTS}{constants}"


_LICENSED = f"""\
{HEADER}# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""
_FRAGMENTS = f"""\
{_LICENSED}from __future__ import annotations


class ModuleDocFragment:
"""


def host_info_spec() -> str:
    """plugins/module_utils/_host_info_spec.py: what the module takes, without the contract's texts,
    which a host has no use for.
    """
    given = options.of_module(options.INFO)
    rows = "".join(_literal(name, option.spec()) for name, option in given)
    return f"{_HOST_INFO_SPEC}SPEC: dict[str, dict[str, Any]] = {{\n{rows}}}\n"


def _literal(name: str, spec: dict[str, Any]) -> str:
    """A line of the dictionary, broken as ruff does where it is too long."""
    pairs = [
        f"{json.dumps(key)}: {value if isinstance(value, bool) else json.dumps(value)}"
        for key, value in spec.items()
    ]
    line = f"    {json.dumps(name)}: {{{', '.join(pairs)}}},\n"
    if len(line) <= WIDTH + 1:
        return line
    broken = "".join(f"        {pair},\n" for pair in pairs)
    return f"    {json.dumps(name)}: {{\n{broken}    }},\n"


_HOST_INFO_SPEC = f"""\
{_LICENSED}\"\"\"Options of sgl_host_info that are variables too.\"\"\"

from __future__ import annotations

from typing import Any

"""


def _fragment(named: dict[str, Option]) -> str:
    documented = {name: _manual(option.documented()) for name, option in named.items()}
    text = yaml.dump({"options": documented}, Dumper=_Dumper, sort_keys=False, width=WIDTH - 24)
    # A variable is no option of the module that has this text.
    return text.replace("O(sgl_", "C(sgl_")


def _manual(documented: dict[str, Any]) -> dict[str, Any]:
    """An option as a module's documentation has it: no_log is for its argument_spec alone."""
    spec = {key: value for key, value in documented.items() if key != "no_log"}
    if "options" in spec:
        spec["options"] = {name: _manual(part) for name, part in spec["options"].items()}
    return spec


def variables_table() -> str:
    """A section with a table for each group of variables."""
    return "\n".join(_table(title, group) for title, group in options.GROUPS)


def _table(title: str, group: tuple[Option, ...]) -> str:
    rows = [
        f"| `{option.name}` | {_shown(option)} | {new_container(option)} | {_text(option)} |"
        for option in group
    ]
    head = ["| variable | default | new container | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *head, *rows, ""])


def new_container(option: Option) -> str:
    """Whether a running container is recreated when this variable changes.

    It is where the variable is part of the container's definition in the role `stack`: by name, as
    a variable of its environment, or through the host tree's paths and owner.
    """
    definition = yaml.safe_load(_read("roles/stack/vars/main.yml"))
    names = re.findall(
        r"\bsgl_\w+",
        json.dumps([definition[name] for name in ("stack_definition", *_DEFINED_BY)]),
    )
    if option.variable or option.kind == "mounted" or option.name in names:
        return "yes"
    if option.module.get(options.INFO) in ("user", "owner_uid", "owner_gid"):
        return "yes"
    if option in options.IMAGE and f"{{{{ {option.name} }}}}" in _read(
        "roles/image/tasks/have.yml"
    ):
        return "if the image changes"
    return "no"


# Variables of the role that its definition of a container refers to.
_DEFINED_BY = ("stack_gpus", "stack_shm_size", "stack_image_environment")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _shown(option: Option) -> str:
    if option.shown:
        return option.shown
    if option.default is None or option.default == "":
        return ""
    text = option.default if isinstance(option.default, str) else json.dumps(option.default)
    return f"`{text}`"


def _text(option: Option) -> str:
    plain = re.sub(r"[VCO]\(([^()]*(?:\([^()]*\))?[^()]*)\)", r"`\1`", option.text)
    choices = f" One of {', '.join(f'`{c}`' for c in option.choices)}." if option.choices else ""
    return plain + choices


def exit_code_table() -> str:
    """The exit codes of sgl-admin."""
    meanings = {**exit_codes.MEANINGS}
    for stage in stages.STAGES:
        meanings[stage.exit_code] = f"`{stage.name}` is the first stage that failed"
    rows = [f"| {code} | {meaning} |" for code, meaning in sorted(meanings.items())]
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows, ""])


def command_tables() -> str:
    """The commands of `slice_bench.cli`, and the options of each."""
    actions = cli.parser()._actions
    [commands] = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    helps = {each.dest: each.help or "" for each in commands._choices_actions}
    lines = ["| command | what it does |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(text)} |" for name, text in helps.items()]
    lines += ["", "| command | argument | meaning |", "|---|---|---|"]
    for name, parser in commands.choices.items():
        lines += [
            f"| `{name}` | {_argument(action)} | {_cell(action.help or '')} |"
            for action in parser._actions
            if action.dest not in ("help", *_SHARED_ARGUMENTS)
        ]
    return "\n".join([*lines, ""])


# Arguments of every command that names a host; the page describes them once.
_SHARED_ARGUMENTS = ("inventory", "limit", "extra_vars")


def _argument(action: argparse.Action) -> str:
    if action.option_strings:
        return f"`{', '.join(action.option_strings)}`"
    if action.choices:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    return f"`{action.metavar or action.dest}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def environment_table() -> str:
    """The variables of the caller's environment that stand for variables of the inventory."""
    rows = [f"| `{name}` | `{variable}` |" for name, variable in caller.ENVIRONMENT.items()]
    return "\n".join(["| in the environment | variable |", "|---|---|", *rows, ""])


def decisions_table() -> str:
    """The pages in docs/decisions, by their titles."""
    rows = []
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f"| [{path.stem}](../decisions/{path.name}) | {title} |")
    return "\n".join(["| page | about |", "|---|---|", *rows, ""])


def prep_task() -> str:
    """What the role provider_prep passes to sgl_prep as it is."""
    lines = {
        stage.option: _jinja(f"provider_prep_modes.{stage.option} | default({_mode(stage)})")
        for stage in stages.STAGES
    }
    for name, option in options.of_module(options.PREP):
        # A share of a tuning has its own batch sizes, and no proof.
        if name not in ("container", "moe_batch_sizes", "probe"):
            lines[name] = _jinja(option.name)
    return "".join(f"    {name}: {value}\n" for name, value in lines.items())


def _mode(stage: stages.Stage) -> str:
    """The expression for a stage's mode where none is named: a share of a tuning skips others."""
    if stage.default == stages.BY_NAME["moe_tune"].default:
        return "provider_prep_default_mode"
    return f"'{stage.default}'"


def dockerfile_caches() -> str:
    """The cache variables of the image."""
    settings = [
        f"{variable}=/profiles/{cache}" for variable, cache in places.CACHE_VARIABLES.items()
    ]
    return "ENV " + " \\\n    ".join(settings) + "\n"


def share_stages() -> str:
    """The choices of a stage in sgl_share's documentation."""
    return f"        choices: [{', '.join(stages.SHARED)}]\n"


def schema_names() -> str:
    """The enumerations of schemas/common.schema.json."""
    enums = {
        "stage_name": stages.NAMES,
        "error_type": stages.ERROR_TYPES,
        "surface_status": services.SURFACE_STATES,
    }
    blocks = []
    for name, values in enums.items():
        listed = textwrap.fill(
            ", ".join(json.dumps(value) for value in values),
            WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 8,
        )
        blocks.append(f'    "{name}": {{\n      "enum": [\n{listed}\n      ]\n    }},\n')
    codes = ",\n".join(f"        {_stage_code(stage)}" for stage in stages.STAGES)
    blocks.append(f'    "stage_codes": {{\n      "allOf": [\n{codes}\n      ]\n    }},\n')
    return "".join(blocks)


def _stage_code(stage: stages.Stage) -> str:
    """A stage's results have its own exit code, or none, and a signature of this stage."""
    name = {"const": stage.name}
    holds = {
        "status_code": {"enum": [0, stage.exit_code]},
        "signature": {"properties": {"stage": name}},
    }
    return json.dumps({"if": {"properties": {"stage": name}}, "then": {"properties": holds}})


# Names that schemas list, and how many of one list must stand together to be that list.
SCHEMA_LISTS = {
    stages.NAMES: 3,
    tuple(places.CACHES): 3,
    services.SURFACES: 3,
    services.NAMES: 3,
    services.EXPORTERS: 2,
}
SCHEMA_NAMES = {name for names in SCHEMA_LISTS for name in names}
_REQUIRED = re.compile(r'"required": \[([^\]]+)\]')


def schema(text: str) -> str:
    """A schema's text with every such list whole, in `required` and where each has its own line."""
    return _whole_runs(_REQUIRED.sub(_required, text))


def _list_of(found: list[str]) -> tuple[str, ...]:
    """The list that these names are of: the one that has most of them, or the shortest such."""
    matches = [(sum(name in names for name in found), names) for names in SCHEMA_LISTS]
    enough = [(count, names) for count, names in matches if count >= SCHEMA_LISTS[names]]
    return max(enough, key=lambda match: (match[0], -len(match[1])), default=(0, ()))[1]


def _required(found: re.Match[str]) -> str:
    """The list with all of its names, in their order, from where the first of them stood."""
    listed = json.loads(f"[{found[1]}]")
    names = _list_of(listed)
    ours = [name for name in listed if name in names]
    if ours == list(names):
        return found[0]
    first = listed.index(ours[0])
    rest = [name for name in listed[first:] if name not in names]
    return f'"required": {json.dumps([*listed[:first], *names, *rest])}'


def _whole_runs(text: str) -> str:
    """Lines that follow each other and differ in one of these names only: one for each name."""
    made: list[str] = []
    run: list[str] = []
    named: list[str] = []
    template = None
    for line in [*text.split("\n"), ""]:
        name, shape = _shape(line)
        if run and shape != template:
            made += _expanded(run, template, _list_of(named))
            run, named = [], []
        template = shape
        if name is None:
            made.append(line)
        else:
            run.append(line)
            named.append(name)
    return "\n".join(made[:-1])


def _shape(line: str) -> tuple[str | None, str | None]:
    """A line's name, and the line without it and its comma; None where it does not name one."""
    named = SCHEMA_NAMES.intersection(re.findall(r'"(\w+)"', line))
    if len(named) != 1:
        return None, None
    [name] = named
    return name, line.rstrip(",").replace(f'"{name}"', '"NAME"')


def _expanded(run: list[str], template: str | None, names: tuple[str, ...]) -> list[str]:
    if template is None or not names:
        return run
    lines = [template.replace('"NAME"', f'"{name}"') + "," for name in names]
    return lines if run[-1].endswith(",") else [*lines[:-1], lines[-1].rstrip(",")]


def example(name: str, schemas: dict[str, str], text: str) -> str:
    """A contract's example with all keys that its schema requires: a new stage, exporter or cache
    is there as the one before it.
    """
    documents = {path.rpartition("/")[2]: json.loads(made) for path, made in schemas.items()}
    resources = [(key, Resource.from_contents(document)) for key, document in documents.items()]
    registry: Registry[Any] = Registry().with_resources(resources)
    validator = Draft202012Validator(documents[f"{name}.schema.json"], registry=registry)
    document = json.loads(text)
    errors = [error for error in validator.iter_errors(document) if error.validator == "required"]
    completed = [_complete(error.instance, error.validator_value) for error in errors]
    return json.dumps(document, indent=2) + "\n" if any(completed) else text


def _complete(part: dict[str, Any], required: list[str]) -> bool:
    """Add the names that a part of an example lacks, each as a copy of the one before it."""
    lacking = [name for name in required if name in SCHEMA_NAMES and name not in part]
    for name in lacking:
        place = required.index(name)
        before = required[place - 1] if place else required[1]
        part[name] = json.loads(json.dumps(part[before]).replace(f'"{before}"', f'"{name}"'))
    others = [name for name in part if name not in required]
    for name in [*(name for name in required if name in part), *others]:
        part[name] = part.pop(name)
    return bool(lacking)


def locked_cores() -> dict[str, tuple[str, str]]:
    """Each ansible-core that is installed, with the Pythons that get it: `<` or `>=`, and a
    version.
    """
    locked = _read("requirements/base.txt")
    pattern = r"^ansible-core==([\d.]+) ; python_full_version (\S+) '([\d.]+)'"
    return {core: (mark, bound) for core, mark, bound in re.findall(pattern, locked, re.M)}


def core_of(python: str) -> str:
    """The ansible-core that a Python gets."""
    older = {"<": True, ">=": False}
    version = tuple(map(int, python.split(".")))
    [core] = [
        core
        for core, (mark, bound) in locked_cores().items()
        if (version < tuple(map(int, bound.split(".")))) is older[mark]
    ]
    return core


def _workflow_jobs() -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(_read(".github/workflows/ci.yml"))["jobs"]
    return jobs


def checked_pythons() -> list[str]:
    """The Pythons of the controller that the fast lane runs with."""
    pythons: list[str] = _workflow_jobs()["check"]["strategy"]["matrix"]["python"]
    return pythons


def _tested_cores() -> str:
    [whole] = [
        step["with"]["python-version"]
        for step in _workflow_jobs()["test"]["steps"]
        if "python-version" in step.get("with", {})
    ]
    return "; ".join(
        f"{core_of(python)} with Python {python}: {'all' if python == whole else 'unit'} tests"
        for python in checked_pythons()
    )


def support_table() -> str:
    """The versions that the tests run with, from the files that choose them."""
    flavours = "roles/image/files/flavours"
    packages = _read(f"{flavours}/local/requirements.txt")
    [sglang] = re.findall(r"^sglang==([\d.]+)", packages, re.MULTILINE)
    base = json.loads(_read(f"{flavours}/gh200/build.json"))["base"]
    oldest_core = yaml.safe_load(_read("meta/runtime.yml"))["requires_ansible"]
    pyproject = tomllib.loads(_read("pyproject.toml"))
    modules = pyproject["tool"]["ruff"]["per-file-target-version"]["plugins/modules/**"]
    controller = pyproject["project"]["requires-python"].removeprefix(">=")
    host = f"{modules[2]}.{modules[3:]}"
    rows = [
        ("ansible-core", oldest_core.removeprefix(">="), _tested_cores()),
        ("Python of the controller", controller, ", ".join(checked_pythons())),
        ("Python of a host", host, f"Debian's, and {host} where the test machine has it"),
        ("SGLang without a GPU", sglang, f"{sglang}, on the CPU"),
        ("SGLang of the `gh200` image", "`sgl_image_base`", f"`{base}` is the default; not run"),
    ]
    head = "| part | oldest | in the tests |\n|---|---|---|\n"
    return head + "".join(f"| {part} | {oldest} | {found} |\n" for part, oldest, found in rows)


# Whole files, and parts of files with the patterns of the lines around them.
FILES: dict[str, Callable[[], str]] = {
    "roles/settings/defaults/main.yml": role_defaults,
    "roles/settings/vars/main.yml": role_vars,
    "playbooks/tasks/profile.yml": profile_tasks,
    "roles/preflight/meta/argument_specs.yml": preflight_spec,
    "roles/dashboard/meta/argument_specs.yml": dashboard_spec,
    "plugins/doc_fragments/options.py": doc_fragments,
    "plugins/module_utils/_host_info_spec.py": host_info_spec,
    "docs/images/architecture.svg": architecture.svg,
}
PARTS: list[tuple[str, str, str, Callable[[], str]]] = [
    *(
        (f"docs/{page}.md", f"<!-- {part} -->\n", f"<!-- end of {part} -->\n", write)
        for page, part, write in (
            ("reference/variables", "variables", variables_table),
            ("reference/exit-codes", "exit codes", exit_code_table),
            ("reference/commands", "commands", command_tables),
            ("reference/commands", "environment", environment_table),
            ("reference/support", "versions", support_table),
            ("explanation/decisions", "decisions", decisions_table),
        )
    ),
    (
        "roles/provider_prep/tasks/main.yml",
        "    # Generated from the contract by `make generate`.\n",
        "    # End of generated lines.\n",
        prep_task,
    ),
    (
        "roles/image/files/Dockerfile",
        "# Cache variables, generated by `make generate`.\n",
        "# End of cache variables.\n",
        dockerfile_caches,
    ),
    (
        "plugins/modules/sgl_share.py",
        "        # Stages, generated by `make generate`.\n",
        "        # End of stages.\n",
        share_stages,
    ),
    (
        "schemas/common.schema.json",
        '      "type": ["string", "null"],\n      "pattern": "^[0-9]+\\\\.[0-9]+$"\n    },\n',
        '    "signature": {\n',
        schema_names,
    ),
]


def generated() -> dict[str, str]:
    """Each file's name and what it must hold."""
    made = {name: write() for name, write in FILES.items()}
    for name, begin, end, write in PARTS:
        text = made.get(name) or (ROOT / name).read_text(encoding="utf-8")
        before, found, rest = text.partition(begin)
        _old, ends, after = rest.partition(end)
        if not found or not ends:
            raise SystemExit(f"{name} lacks the line {begin!r} or {end!r}")
        made[name] = before + begin + write() + end + after
    for path in sorted((ROOT / "schemas").glob("*.json")):
        name = f"schemas/{path.name}"
        made[name] = schema(made.get(name) or path.read_text(encoding="utf-8"))
    schemas = {name: text for name, text in made.items() if name.startswith("schemas/")}
    for path in sorted((ROOT / EXAMPLES).glob("*.json")):
        text = path.read_text(encoding="utf-8")
        made[f"{EXAMPLES}/{path.name}"] = example(path.stem, schemas, text)
    return made


def main() -> None:
    for name, text in generated().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: {name}")


if __name__ == "__main__":
    main()
