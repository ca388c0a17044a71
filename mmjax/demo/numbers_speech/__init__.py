"""The numbers 0 to 99 spoken by 16 synthetic voices: `index.json` and one Ogg Opus file a voice.

`make.py` made them with espeak-ng; `mmjax.demo.numbers.Numbers` reads them.
"""
