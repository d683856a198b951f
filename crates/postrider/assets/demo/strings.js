// The words of the page, in English and Chinese.

const en = {
  skip: 'Skip to the message',
  headline: 'Send yourself a push',
  lead: 'This browser is a registered device. What you send takes the same road as every push: accepted on stable storage, put into the inbox, sent, acknowledged, and written down at each step.',
  language: 'Language', theme: 'Light or dark', connection: 'Connection',
  device: 'Device', road: 'Road', tab: 'This tab', tab_leader: 'holds the connection', tab_follower: 'shares the connection',
  permit: 'Allow browser notifications', cut: 'Disconnect', join: 'Connect',
  online_detail: 'Pushes arrive at once.', away_detail: 'What is sent now waits in the inbox.', retry: 'Next attempt in {s} s. Pushes wait in the inbox.',
  compose: 'Compose', kind: 'Kind of message', kind_notification: 'Notification', kind_data: 'Data message', examples: 'Examples',
  title: 'Title', body: 'Text', picture: 'Picture', picture_none: 'none', picture_parcel: 'Parcel', picture_rain: 'Rain', picture_sea: 'Sea',
  target: 'A click opens', target_order: 'Order 7', target_weather: 'The forecast', target_chat: 'The chat with Li', target_none: 'nothing',
  with_buttons: 'With two buttons', data: 'JSON for the app; the user sees nothing',
  send: 'Send', sending: 'Sending…', send_later: 'In 5 s', in_seconds: 'in {s} s',
  not_json: 'That is not JSON.', failed: 'The server did not take it: {why}', unreachable: 'The server cannot be reached.',
  no_device: 'This browser could not be registered: {why}',
  phone: 'Phone', phone_view: 'The phone shows', view_lock: 'Lock screen', view_shade: 'Notification shade',
  notifications: 'Notifications', no_notes: 'No notifications', now: 'now', minutes: '{n} min', dismiss: 'Dismiss: {title}', untitled: 'New message',
  data_came: 'The app received data', back: 'Back', opened_by: 'Opened by a click on the notification.',
  ledger: 'What became of it', ledger_empty: 'Send a message, and its way shows here step by step.', earlier: 'Earlier',
  step_accepted: 'Accepted', why_accepted: 'On stable storage, before the sender was answered.',
  step_queued: 'Queued', why_queued: 'In this device’s inbox.',
  step_sent: 'Sent', why_sent: 'Written to the connection.',
  step_forwarded: 'Forwarded', why_forwarded: 'A provider took it, to bring it by another road.',
  step_delivered: 'Delivered', why_delivered: 'Noted by this browser, and acknowledged.',
  step_displayed: 'Displayed', why_displayed: 'Shown on the screen.',
  step_clicked: 'Clicked', why_clicked: 'Opened by you.',
  step_dismissed: 'Dismissed', why_dismissed: 'Put away by you.',
  step_replied: 'Replied', why_replied: 'Answered by you.', reply: 'Your answer',
  wait_sent: 'Waits for the device to connect.', wait_delivered: 'Waits for the acknowledgement.',
  wait_displayed: 'Waits to be shown.', wait_clicked: 'Waits for you: click the notification on the phone.',
  ended: 'Ended: {step}', footer: 'This page speaks to your own server and to nothing else. It uses the project’s browser SDK by one script tag.',
}

const zh = {
  skip: '跳到消息编辑',
  headline: '给自己发一条推送',
  lead: '这个浏览器就是一台已注册的设备。您发出的消息与其他推送走同一条路：先写入稳定存储，再进入收件箱，然后下发、确认，每一步都记录在案。',
  language: '语言', theme: '浅色或深色', connection: '连接',
  device: '设备', road: '通道', tab: '本标签页', tab_leader: '持有连接', tab_follower: '共用连接',
  permit: '允许浏览器通知', cut: '断开', join: '连接',
  online_detail: '推送会立即到达。', away_detail: '现在发送的消息会在收件箱里等待。', retry: '{s} 秒后重试，推送在收件箱里等待。',
  compose: '编辑消息', kind: '消息类型', kind_notification: '通知', kind_data: '数据消息', examples: '示例',
  title: '标题', body: '正文', picture: '图片', picture_none: '无', picture_parcel: '包裹', picture_rain: '雨', picture_sea: '海',
  target: '点击后打开', target_order: '订单 7', target_weather: '天气预报', target_chat: '与小李的聊天', target_none: '不打开页面',
  with_buttons: '带两个按钮', data: '给应用的 JSON，用户看不到',
  send: '发送', sending: '正在发送…', send_later: '5 秒后', in_seconds: '{s} 秒后',
  not_json: '这不是有效的 JSON。', failed: '服务器没有接受：{why}', unreachable: '无法连接服务器。',
  no_device: '无法注册这个浏览器：{why}',
  phone: '手机', phone_view: '手机显示', view_lock: '锁屏', view_shade: '通知栏',
  notifications: '通知', no_notes: '没有通知', now: '刚刚', minutes: '{n} 分钟前', dismiss: '移除：{title}', untitled: '新消息',
  data_came: '应用收到了数据', back: '返回', opened_by: '由点击通知打开。',
  ledger: '消息的去向', ledger_empty: '发送一条消息，它的每一步都会显示在这里。', earlier: '更早的消息',
  step_accepted: '已接收', why_accepted: '已写入稳定存储，然后才答复发送方。',
  step_queued: '已入队', why_queued: '在这台设备的收件箱里。',
  step_sent: '已下发', why_sent: '已写入连接。',
  step_forwarded: '已转交', why_forwarded: '已由服务商接收，经其他通道送达。',
  step_delivered: '已送达', why_delivered: '浏览器已记下并确认。',
  step_displayed: '已展示', why_displayed: '已显示在屏幕上。',
  step_clicked: '已点击', why_clicked: '您打开了它。',
  step_dismissed: '已移除', why_dismissed: '您把它移走了。',
  step_replied: '已回复', why_replied: '您回复了它。', reply: '回复内容',
  wait_sent: '等待设备连接。', wait_delivered: '等待设备确认。',
  wait_displayed: '等待展示。', wait_clicked: '等您点击手机上的通知。',
  ended: '已结束：{step}', footer: '本页面只与您自己的服务器通信。它通过一个 script 标签使用本项目的浏览器 SDK。',
}

const examples = {
  en: [
    { id: 'order', chip: 'Parcel', title: 'Your parcel is on its way', body: 'Order 7 left the depot and arrives today between 14:00 and 16:00.', picture: 'parcel', target: 'order',
      actions: [{ id: 'track', title: 'Track', target: 'order' }, { id: 'write', title: 'Write to Li', target: 'chat' }] },
    { id: 'weather', chip: 'Weather', title: 'Heavy rain from 17:00', body: 'Take an umbrella: 20 mm are expected until the evening.', picture: 'rain', target: 'weather',
      actions: [{ id: 'forecast', title: 'Forecast', target: 'weather' }, { id: 'fine', title: 'Thanks', target: '' }] },
    { id: 'chat', chip: 'Chat', title: 'Li Wei', body: 'The sea is wonderful today. Are you coming along on Sunday?', picture: 'sea', target: 'chat',
      actions: [{ id: 'reply', title: 'Reply', target: 'chat' }, { id: 'later', title: 'Later', target: '' }] },
  ],
  zh: [
    { id: 'order', chip: '包裹', title: '您的包裹正在派送', body: '订单 7 已离开站点，预计今天 14:00 至 16:00 送达。', picture: 'parcel', target: 'order',
      actions: [{ id: 'track', title: '查看物流', target: 'order' }, { id: 'write', title: '联系小李', target: 'chat' }] },
    { id: 'weather', chip: '天气', title: '17:00 起有大雨', body: '出门请带伞，到晚上预计降雨 20 毫米。', picture: 'rain', target: 'weather',
      actions: [{ id: 'forecast', title: '查看预报', target: 'weather' }, { id: 'fine', title: '知道了', target: '' }] },
    { id: 'chat', chip: '聊天', title: '小李', body: '今天的海真美。周日一起去吗？', picture: 'sea', target: 'chat',
      actions: [{ id: 'reply', title: '回复', target: 'chat' }, { id: 'later', title: '以后再说', target: '' }] },
  ],
}

/** What a click can open: the routes of this page. */
export const TARGETS = { order: '/demo#/order/7', weather: '/demo#/weather', chat: '/demo#/chat/li', none: '' }

const pages = {
  en: {
    '#/order/7': { picture: 'parcel', title: 'Order 7', text: 'On its way with Li Wei. Three stops before yours.' },
    '#/weather': { picture: 'rain', title: 'Rain until 22:00', text: '20 mm, wind from the west. Sunny again tomorrow, 24°.' },
    '#/chat/li': { picture: 'sea', title: 'Li Wei', text: '“The sea is wonderful today. Are you coming along on Sunday?”' },
  },
  zh: {
    '#/order/7': { picture: 'parcel', title: '订单 7', text: '小李正在派送，您前面还有三站。' },
    '#/weather': { picture: 'rain', title: '雨下到 22:00', text: '降雨 20 毫米，西风。明天转晴，24°。' },
    '#/chat/li': { picture: 'sea', title: '小李', text: '“今天的海真美。周日一起去吗？”' },
  },
}

const asked = new URLSearchParams(location.search).get('lang') ?? read('postrider.demo.language') ?? navigator.language
let language = /^zh/i.test(asked) ? 'zh' : 'en'

export function currentLanguage () {
  return language
}

export function locale () {
  return language === 'zh' ? 'zh-CN' : 'en'
}

/** The words for `name`, with `{x}` filled in. */
export function t (name, fill = {}) {
  const words = (language === 'zh' ? zh : en)[name] ?? name
  return words.replace(/\{(\w+)\}/g, (_, key) => fill[key] ?? '')
}

export function examplesNow () {
  return examples[language]
}

export function pageOf (route) {
  return pages[language][route] ?? { title: route, text: '' }
}

export function setLanguage (wanted) {
  language = wanted
  write('postrider.demo.language', wanted)
  translate()
}

/** Puts the words into everything that is marked with data-text or data-label. */
export function translate () {
  document.documentElement.lang = locale()
  for (const element of document.querySelectorAll('[data-text]')) element.textContent = t(element.dataset.text)
  for (const element of document.querySelectorAll('[data-label]')) element.setAttribute('aria-label', t(element.dataset.label))
  for (const button of document.querySelectorAll('[data-language]')) {
    button.setAttribute('aria-pressed', String(button.dataset.language === language))
  }
}

export function read (name) {
  try {
    return localStorage.getItem(name)
  } catch {
    return null
  }
}

export function write (name, value) {
  try {
    localStorage.setItem(name, value)
  } catch {
    // A private window: the choice lasts as long as the page.
  }
}
