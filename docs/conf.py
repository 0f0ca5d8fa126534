"""The documentation site: make site writes it to dist/site.

Sphinx reads the same Markdown files that a forge shows; README is the first page.
"""

project = "dmsflow"
html_title = "dmsflow"
extensions = ["myst_parser"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["results/*"]
html_extra_path = ["results"]  # the results files, which docs/results.md links to
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
nitpicky = True
suppress_warnings = ["myst.header"]  # README's part that is included here begins below its title
