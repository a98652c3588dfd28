import { StreamLanguage, StringStream } from '@codemirror/language';
import { Compartment, EditorState, Extension, Prec, Text } from '@codemirror/state';

/** Cells in our language: Python expressions and mongosh's syntax, which is a superset of JSON. Models are plain Python. */
const OURS = /^\s*%%sddb\b(?!\s+model\b)/;

const KEYWORDS = /^(?:and|else|False|false|for|if|in|is|lambda|None|not|null|or|True|true|undefined)$/;
const BUILTINS = /^(?:BinData|Date|Decimal128|ISODate|Int64|Long|NumberDecimal|NumberInt|NumberLong|ObjectId|RegExp|Timestamp|UUID|datetime|re)$/;

interface State {
  /** The magic's own line comes first. */
  line: boolean;
  /** Which word of that line comes next. */
  word: number;
  /** What ends the string that began on a line before; empty: there is none. */
  open: string;
}

function inLine(stream: StringStream, state: State): string | null {
  if (stream.match(/^%%sddb\b/)) {
    return 'meta';
  }
  if (stream.match(/^(['"])(?:\\.|(?!\1).)*\1?/)) {
    return 'string';
  }
  if (stream.match(/^--?[A-Za-z][\w-]*/)) {
    return 'attributeName';
  }
  if (stream.match(/^-?\d+(?:\.\d+)?(?=\s|$)/)) {
    return 'number';
  }
  if (stream.match(/^<</)) {
    return 'operator';
  }
  stream.match(/^\S+/);
  return state.word++ === 0 ? 'keyword' : 'variableName';
}

/** Read on in a string, up to its end or the end of the line. */
function inString(stream: StringStream, state: State): string {
  while (!stream.eol()) {
    if (stream.match(state.open)) {
      state.open = '';
      return 'string';
    }
    if (stream.next() === '\\') {
      stream.next();
    }
  }
  if (state.open.length === 1) {
    state.open = ''; // only triple quotes go over lines
  }
  return 'string';
}

function inBody(stream: StringStream, state: State): string | null {
  if (stream.match(/^(?:#|\/\/).*/) || stream.match(/^\/\*.*?\*\//)) {
    return 'comment';
  }
  if (stream.match(/^(["'])\$\w+\1/)) {
    return 'keyword'; // an operator of MongoDB
  }
  if (stream.match(/^(["'])(?:\\.|(?!\1).)*\1(?=\s*:)/)) {
    return 'propertyName';
  }
  const quotes = stream.match(/^[rbfRBF]{0,2}("""|'''|["'])/) as RegExpMatchArray | null;
  if (quotes) {
    state.open = quotes[1];
    return inString(stream, state);
  }
  if (stream.match(/^\/(?![*/\s])(?:\\.|[^/\\])+\/[a-z]*/)) {
    return 'regexp';
  }
  if (stream.match(/^(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?/)) {
    return 'number';
  }
  if (stream.match(/^\$\w+/)) {
    return 'keyword';
  }
  const word = stream.match(/^[^\W\d][\w.]*/u) as RegExpMatchArray | null;
  if (word) {
    return named(word[0], stream);
  }
  return /[-+*/%=<>!&|^~]/.test(stream.next() ?? '') ? 'operator' : null;
}

function named(word: string, stream: StringStream): string {
  if (KEYWORDS.test(word)) {
    return 'keyword';
  }
  if (BUILTINS.test(word)) {
    return 'variableName.standard';
  }
  if (stream.match(/^\s*:(?!=)/, false)) {
    return 'propertyName';
  }
  return stream.match(/^\s*\(/, false) ? 'function' : 'variableName';
}

const sddb = StreamLanguage.define<State>({
  name: 'sddb',
  startState: () => ({ line: true, word: 0, open: '' }),
  copyState: state => ({ ...state }),
  token: (stream, state) => {
    if (stream.eatSpace()) {
      return null;
    }
    if (state.open) {
      return inString(stream, state);
    }
    if (!state.line) {
      return inBody(stream, state);
    }
    const kind = inLine(stream, state);
    state.line = !stream.eol();
    return kind;
  },
  languageData: {
    commentTokens: { line: '#' },
    closeBrackets: { brackets: ['(', '[', '{', "'", '"'] }
  }
});

const NONE: Extension = [];

function languageOf(text: Text | string): Extension {
  return OURS.test(text.slice(0, 200).toString()) ? sddb : NONE;
}

/**
 * Colour an editor that shows `text` at first.
 *
 * The language of an editor is the first that its extensions provide. Ours stands before the notebook's, and is there only
 * while the cell begins with `%%sddb`: CodeMirror parses anew when that changes.
 */
export function highlighting(text: string): Extension {
  const place = new Compartment();
  const follow = EditorState.transactionExtender.of(change => {
    if (!change.docChanged) {
      return null;
    }
    const wanted = languageOf(change.newDoc);
    return wanted === place.get(change.startState) ? null : { effects: place.reconfigure(wanted) };
  });
  return [Prec.highest(place.of(languageOf(text))), follow];
}
