"""The site: `sphinx-build -W -b html docs site`. Every code cell runs while it is built."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from siglip_ref import __version__

project, author, release = "siglip-ref", "the siglip-ref authors", __version__
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "offline_math",
    "catalogue",
    "ring_page_builder",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = "siglip-ref"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # search stands in the sidebar
}

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables that cells make are tables

autodoc_typehints = "none"  # the docstrings say shapes and meaning
autodoc_member_order = "bysource"
napoleon_google_docstring = False
