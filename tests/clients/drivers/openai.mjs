// openai: both APIs, with loops written by hand as the documentation has them.
import { answerCall, declare } from './tool_types.mjs'
import { MODEL, PERSON, TOOLS, called, isJson, load, pick, schemaOf } from './tools.mjs'

const OpenAI = (await load('openai')).default

export function clients(url) {
  const client = new OpenAI({ baseURL: url, apiKey: 'none', maxRetries: 0 })
  return {
    'openai-js responses': (flow, stream) => responses(client, flow, stream, false),
    'openai-js responses stored': (flow, stream) => responses(client, flow, stream, true),
    'openai-js chat': (flow, stream) => chat(client, flow, stream),
  }
}

function listResponseOptions(flow) {
  const options = { model: flow.model ?? MODEL, temperature: flow.temperature ?? 0, ...pick(flow, 'top_p', 'tool_choice') }
  if (flow.effort) options.reasoning = { effort: flow.effort }
  if (flow.system) options.instructions = flow.system
  if (flow.max_tokens) options.max_output_tokens = flow.max_tokens
  if (flow.tools) options.tools = declare(flow.tools)
  if (flow.schema) {
    options.text = { format: { type: 'json_schema', name: 'person', schema: schemaOf(PERSON), strict: true } }
  }
  if (flow.json_object) options.text = { format: { type: 'json_object' } }
  return options
}

// stored: earlier turns are named by previous_response_id; else they are sent again.
async function responses(client, flow, stream, stored) {
  const options = listResponseOptions(flow)
  const calls = []
  let input = []
  let answer
  for (const question of flow.asks) {
    let turn = [{ role: 'user', content: question }]
    while (turn.length) {
      input = stored ? turn : [...input, ...turn]
      answer = stream
        ? await client.responses.stream({ ...options, input }).finalResponse()
        : await client.responses.create({ ...options, input })
      if (stored) options.previous_response_id = answer.id
      else input = [...input, ...answer.output]
      turn = answer.output.filter((item) => item.type.endsWith('_call')).map((item) => answerCall(item, calls))
    }
  }
  const texts = (type) => answer.output.flatMap((o) => o.content ?? []).filter((c) => c.type === type).map((c) => c.text).join('')
  const text = texts('output_text')
  return {
    text,
    reasoning: texts('reasoning_text'),
    calls,
    data: isJson(flow) ? JSON.parse(text) : null,
    finish: answer.status === 'incomplete' ? 'length' : 'stop',
    output_tokens: answer.usage.output_tokens,
  }
}

function listChatOptions(flow) {
  const options = {
    model: flow.model ?? MODEL,
    temperature: flow.temperature ?? 0,
    ...pick(flow, 'top_p', 'tool_choice', 'stop', 'seed', 'presence_penalty', 'frequency_penalty'),
  }
  if (flow.effort) options.reasoning_effort = flow.effort
  if (flow.max_tokens) options.max_tokens = flow.max_tokens
  if (flow.tools) {
    options.tools = Object.entries(TOOLS).map(([name, t]) => (
      { type: 'function', function: { name, description: t.description, parameters: schemaOf(t.shape) } }))
  }
  if (flow.schema) {
    options.response_format = { type: 'json_schema', json_schema: { name: 'person', schema: schemaOf(PERSON), strict: true } }
  }
  if (flow.json_object) options.response_format = { type: 'json_object' }
  return options
}

// The deltas joined by hand, as most programs do; the helper of the SDK drops fields that it does not know.
async function joinChunks(chunks) {
  const message = { role: 'assistant', content: '', reasoning_content: '' }
  const parts = []
  let finish
  let usage
  for await (const chunk of chunks) {
    const choice = chunk.choices[0]
    usage = chunk.usage ?? usage
    finish = choice?.finish_reason ?? finish
    message.content += choice?.delta.content ?? ''
    message.reasoning_content += choice?.delta.reasoning_content ?? ''
    for (const piece of choice?.delta.tool_calls ?? []) {
      parts[piece.index] ??= { id: piece.id, type: 'function', function: { name: piece.function.name, arguments: '' } }
      parts[piece.index].function.arguments += piece.function.arguments ?? ''
    }
  }
  if (parts.length) message.tool_calls = parts
  return { choices: [{ message, finish_reason: finish }], usage }
}

async function chat(client, flow, stream) {
  const options = listChatOptions(flow)
  if (stream) Object.assign(options, { stream: true, stream_options: { include_usage: true } })
  const calls = []
  const messages = flow.system ? [{ role: 'system', content: flow.system }] : []
  let answer
  for (const content of flow.asks) {
    messages.push({ role: 'user', content })
    for (;;) {
      const got = await client.chat.completions.create({ ...options, messages })
      answer = stream ? await joinChunks(got) : got
      const { message } = answer.choices[0]
      messages.push(message)
      for (const call of message.tool_calls ?? []) {
        const result = called(calls, call.function.name, JSON.parse(call.function.arguments))
        messages.push({ role: 'tool', tool_call_id: call.id, content: result })
      }
      if (!message.tool_calls?.length) break
    }
  }
  const { message, finish_reason: finish } = answer.choices[0]
  return {
    text: message.content,
    reasoning: message.reasoning_content ?? '',
    calls,
    data: isJson(flow) ? JSON.parse(message.content) : null,
    finish,
    output_tokens: answer.usage.completion_tokens,
  }
}
