"""The sampling engine. torch and diffusers live here only."""
