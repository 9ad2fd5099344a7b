"""Sphinx's configuration of the site that `make docs` builds."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

project = "slice_bench.sglang"
copyright = "slice_bench.sglang contributors"  # noqa: A001 - Sphinx's name
html_title = project

extensions = ["myst_parser", "sphinx_antsibull_ext"]
# The pages link to headings as forges name them.
myst_heading_anchors = 4
# README shows its pictures for light and dark with HTML, whose files Sphinx does not copy.
html_extra_path = ["../pictures"]
suppress_warnings = [
    # The decisions and the changelog begin a heading below the one before.
    "myst.header",
]
# Blocks of commands have no language.
highlight_language = "none"
pygments_style = "ansible"

html_theme = "sphinx_ansible_theme"
html_theme_options = {"topbar_links": {}}
html_show_sphinx = False
html_copy_source = False
html_use_index = False

# What the collection's pages say of Ansible itself, by its label: these pages are Ansible's.
_ANSIBLE = "https://docs.ansible.com/ansible/latest/"
_LABELS = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "callback_plugins": "plugins/callback.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}
_PLUGIN = re.compile(r"ansible_collections\.(ansible|community)\.(\w+)\.(\w+)")


def ansible_reference(_app: Any, _env: Any, node: Any, text: Any) -> nodes.reference | None:
    """A link to Ansible's own documentation, without asking it for its index."""
    label = node["reftarget"]
    plugin = _PLUGIN.fullmatch(label)
    page = "collections/{}/{}/{}.html".format(*plugin.groups()) if plugin else _LABELS.get(label)
    return nodes.reference("", "", text, refuri=_ANSIBLE + page) if page else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", ansible_reference)
