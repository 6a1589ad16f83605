"""One module for each way in which models write tool calls. `call_formats.CALL_FORMATS` lists them."""
