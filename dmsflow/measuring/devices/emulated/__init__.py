"""An ARM core that this machine emulates; its times are modelled."""
