"""The extension of the Jupyter server: runs the engines and answers for them over HTTP."""
