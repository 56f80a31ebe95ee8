"""The laboratory bench for video-diffusion sampling."""

__version__ = "0.1.0.dev0"
