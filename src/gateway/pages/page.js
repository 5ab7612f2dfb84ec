// The page of the API, made from /openapi.json. What comes from there or from an answer is set as text, never as markup.
'use strict';

// where the gateway is: also behind a proxy that adds a prefix
const base = new URL('.', document.baseURI);
const byId = (id) => document.getElementById(id);

// Returns an element with attributes and children; a text stays a text.
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Returns nodes for a line of Markdown: words between backticks are code.
function prose(text) {
  return text.split('`').map((part, at) => (at % 2 ? element('code', {}, part) : part));
}

// Follows a reference into the same document.
function resolve(spec, value) {
  if (!value || !value.$ref) return value;
  return value.$ref.slice(2).split('/').reduce((at, key) => at[key], spec);
}

// Says which values a schema accepts.
function range(schema) {
  const limits = [];
  if (schema.minimum !== undefined) limits.push(`from ${exact(schema.minimum)} to ${exact(schema.maximum)}`);
  if (schema.default !== undefined) limits.push(`by default ${schema.default}`);
  return [schema.type, ...limits].join(', ');
}

// The largest id is no number that JavaScript can hold; it reads it as 2^63.
function exact(number) {
  return number >= 2 ** 63 ? '9223372036854775807' : String(number);
}

function field(id, name, about, required, control) {
  const label = element('label', { for: id }, name, required ? ' (required)' : '');
  control.id = id;
  control.setAttribute('aria-describedby', `${id}-about`);
  control.setAttribute('spellcheck', 'false');
  control.setAttribute('autocomplete', 'off');
  return element('div', { class: 'field' }, label, control, element('p', { id: `${id}-about` }, ...prose(about)));
}

// Returns the fields of an operation, each with what it puts into a request.
function fields(spec, operation) {
  const made = [];
  for (const given of operation.parameters || []) {
    const parameter = resolve(spec, given);
    const control = element('input', { name: parameter.name, 'data-in': parameter.in });
    if (parameter.in === 'query' && parameter.required) control.value = String(parameter.example);
    if (parameter.schema.type === 'integer') control.setAttribute('inputmode', 'numeric');
    const about = `${parameter.description} ${range(parameter.schema)}; for example \`${parameter.example}\`.`;
    made.push(field(`${operation.operationId}-${parameter.name}`, parameter.name, about, parameter.required, control));
  }
  const media = operation.requestBody && operation.requestBody.content['application/json'];
  if (media) {
    const control = element('textarea', { name: 'body', 'data-in': 'body' });
    // an order that the schema has, not that of the alphabet
    const example = Object.fromEntries(media.schema.required.map((name) => [name, media.example[name]]));
    control.value = JSON.stringify(example, null, 2);
    const members = Object.entries(media.schema.properties);
    const list = element('ul', {}, ...members.map(([name, schema]) =>
      element('li', {}, element('code', {}, name), ` (${range(schema)}): `, ...prose(schema.description))));
    const made_of = field(`${operation.operationId}-body`, 'Body', operation.requestBody.description, true, control);
    made_of.append(list);
    made.unshift(made_of);
  }
  return made;
}

// The field for a token, if the gateway asks for tokens. What is in it is kept nowhere else.
let token = null;

// Returns the field for a token.
function tokenField(scheme) {
  token = element('input', { type: 'password' });
  const about = `${scheme.description} Kept in this page only, until it is closed or loaded again.`;
  return field('token', 'Bearer token', about, false, token);
}

// Returns the URL and the options of fetch that a form says.
function request(form, method, path, operation) {
  const url = new URL(path.slice(1), base);
  const options = { method: method.toUpperCase(), headers: {}, cache: 'no-store', credentials: 'omit' };
  if (token && token.value.trim() && (operation.security || []).length) {
    options.headers.authorization = `Bearer ${token.value.trim()}`;
  }
  for (const control of form.querySelectorAll('[data-in]')) {
    const where = control.dataset.in;
    if (where === 'body') {
      options.body = control.value;
      options.headers['content-type'] = 'application/json';
    } else if (control.value !== '') {
      if (where === 'query') url.searchParams.append(control.name, control.value);
      else options.headers[control.name] = control.value;
    }
  }
  return { url, options };
}

// Returns the command that does the same in a shell.
function command({ url, options }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = ['curl', '-i', '-X', options.method];
  for (const [name, value] of Object.entries(options.headers)) {
    // a token does not belong on the screen or into the history of a shell
    parts.push('-H', name === 'authorization' ? '"authorization: Bearer $TOKEN"' : quoted(`${name}: ${value}`));
  }
  if (options.body !== undefined) parts.push('--data-binary', quoted(options.body));
  return [...parts, quoted(url.href)].join(' ');
}

// Sends what a form says and shows what came back.
async function send(form, method, path, operation, output) {
  const asked = request(form, method, path, operation);
  const { status, headers, body, line } = output;
  line.textContent = command(asked);
  output.whole.hidden = false;
  status.className = '';
  status.textContent = 'Sending…';
  headers.replaceChildren();
  body.textContent = '';
  const begun = performance.now();
  try {
    const answer = await fetch(asked.url, asked.options);
    const text = await answer.text();
    const took = Math.round(performance.now() - begun);
    status.className = answer.ok ? 'good' : 'bad';
    status.textContent = `${answer.status} ${answer.statusText}, ${took} ms`;
    for (const [name, value] of answer.headers) {
      headers.append(element('tr', {}, element('th', { scope: 'row' }, name), element('td', {}, value)));
    }
    body.textContent = text || '(no body)';
  } catch (error) {
    status.className = 'bad';
    status.textContent = `No answer: ${error.message}`;
  }
}

function results(id) {
  const output = {
    status: element('p', { role: 'status' }),
    headers: element('tbody'),
    body: element('pre', { tabindex: '0', role: 'region', 'aria-label': 'Body of the answer' }),
    line: element('pre', { tabindex: '0', role: 'region', 'aria-label': 'The same as a command' }),
  };
  const table = element('table', {}, element('thead', {}, element('tr', {},
    element('th', { scope: 'col' }, 'Header'), element('th', { scope: 'col' }, 'Value'))), output.headers);
  output.whole = element('div', { class: 'answer', id: `${id}-answer` }, element('h4', {}, 'Body'), output.body,
    element('h4', {}, 'Headers'), table, element('h4', {}, 'The same as a command'), output.line);
  output.whole.hidden = true;
  return output;
}

function answers(spec, operation) {
  const rows = Object.entries(operation.responses).map(([status, given]) => element('tr', {},
    element('th', { scope: 'row' }, status), element('td', {}, ...prose(resolve(spec, given).description))));
  const head = element('thead', {}, element('tr', {},
    element('th', { scope: 'col' }, 'Status'), element('th', { scope: 'col' }, 'Meaning')));
  return element('table', {}, head, element('tbody', {}, ...rows));
}

// Says who may use an operation, if the gateway asks for tokens.
function needs(operation) {
  if (!operation.security) return [];
  return [element('p', {}, ...prose(operation.description.slice(operation.summary.length + 2)))];
}

function show(spec, path, method, operation) {
  const id = operation.operationId;
  const output = results(id);
  const form = element('form', { 'aria-label': `Try ${id}` }, ...fields(spec, operation),
    element('button', { type: 'submit' }, 'Send'));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send(form, method, path, operation, output);
  });
  const title = element('h3', {}, element('span', { class: 'method' }, method.toUpperCase()), ` ${path}`);
  return element('details', { class: 'operation', id },
    element('summary', {}, title, element('span', { class: 'soft' }, ...prose(operation.summary))),
    element('div', { class: 'inside' }, ...needs(operation), form, output.status, output.whole, element('h4', {}, 'Answers'),
      answers(spec, operation)));
}

// Returns a list of Markdown and the paragraphs around it.
function paragraphs(text) {
  return text.split('\n\n').map((block) => {
    if (!block.startsWith('- ')) return element('p', {}, ...prose(block));
    const items = block.split('\n').map((line) => element('li', {}, ...prose(line.replace(/^- /, ''))));
    return element('ul', {}, ...items);
  });
}

function problems(spec) {
  const rows = byId('problems').querySelector('tbody');
  for (const response of Object.values(spec.components.responses)) {
    const media = response.content && response.content['application/problem+json'];
    for (const [name, example] of Object.entries((media && media.examples) || {})) {
      rows.append(element('tr', {}, element('th', { scope: 'row' }, String(example.value.status)),
        element('td', {}, element('code', {}, name)), element('td', {}, ...prose(example.summary))));
    }
  }
  byId('problems').hidden = false;
}

// Opens the operation that the address names.
function openNamed() {
  const named = location.hash && byId(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) named.open = true;
}

async function start() {
  const answer = await fetch(new URL('openapi.json', base));
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const spec = await answer.json();
  byId('version').textContent = `${spec.info.title} ${spec.info.version}, OpenAPI ${spec.openapi}`;
  byId('about').append(...paragraphs(spec.info.description));
  const { bearer } = spec.components.securitySchemes || {};
  if (bearer) byId('about').append(tokenField(bearer));
  for (const tag of spec.tags) {
    const section = element('section', {}, element('h2', {}, tag.name), element('p', {}, ...prose(tag.description)));
    for (const [path, item] of Object.entries(spec.paths)) {
      for (const [method, operation] of Object.entries(item)) {
        if (!operation.tags.includes(tag.name)) continue;
        section.append(show(spec, path, method, operation));
        byId('contents').append(element('li', {}, element('a', { href: `#${operation.operationId}` }, operation.operationId)));
      }
    }
    byId('operations').append(section);
  }
  problems(spec);
  byId('state').remove();
  openNamed();
  addEventListener('hashchange', openNamed);
}

start().catch((error) => {
  byId('state').textContent = `The description could not be read: ${error.message}`;
});
